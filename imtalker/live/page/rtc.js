// A live face over WebRTC: the browser plays sound and picture in sync by itself.

import { askJson, leave } from "./api.js";

const CONNECT_MS = 6000;

export class RtcLink {
  name = "WebRTC";

  constructor(video, hello, onEvent) {
    this.video = video;
    this.hello = hello;
    this.onEvent = onEvent;
    this.peer = new RTCPeerConnection({ iceServers: [] });
    this.channel = this.peer.createDataChannel("commands");
    this.channel.onmessage = (message) => onEvent(JSON.parse(message.data));
    this.stream = new MediaStream();
  }

  async open() {
    const { peer, video } = this;
    peer.addTransceiver("video", { direction: "recvonly" });
    this.sender = peer.addTransceiver("audio", { direction: "sendrecv" }).sender;
    peer.ontrack = ({ track, streams }) => {
      video.srcObject = streams[0] || this.stream;
      if (!streams[0]) this.stream.addTrack(track);
    };
    await peer.setLocalDescription(await peer.createOffer());
    await gathered(peer);
    if (this.closed) return;
    const answer = await askJson("POST", "/v1/rtc", { sdp: peer.localDescription.sdp, hello: this.hello });
    this.session = answer.session;
    if (this.closed) return this.hangUp();
    await peer.setRemoteDescription({ type: answer.type, sdp: answer.sdp });
    await connected(peer);
    peer.onconnectionstatechange = () => {
      if (["failed", "closed", "disconnected"].includes(peer.connectionState)) {
        this.onEvent({ type: "closing", error: "The connection to the server is lost" });
      }
    };
    await video.play();
  }

  send(command) {
    if (this.channel.readyState === "open") this.channel.send(JSON.stringify(command));
    else this.channel.addEventListener("open", () => this.channel.send(JSON.stringify(command)), { once: true });
  }

  async useMicrophone(stream) {
    await this.sender.replaceTrack(stream.getAudioTracks()[0]);
  }

  setMuted(muted) {
    this.video.muted = muted;
  }

  hangUp() {
    leave(`/v1/sessions/${this.session}`); // the server would notice by itself, but not at once
  }

  close() {
    if (this.closed) return;
    this.closed = true;
    if (this.session) this.hangUp();
    this.peer.onconnectionstatechange = null;
    this.peer.close();
    this.video.srcObject = null;
  }
}

function gathered(peer) {
  if (peer.iceGatheringState === "complete") return Promise.resolve();
  return new Promise((resolve) => {
    setTimeout(resolve, 1500); // what was found until then has to do
    peer.addEventListener("icegatheringstatechange", () => peer.iceGatheringState === "complete" && resolve());
  });
}

function connected(peer) {
  return new Promise((resolve, reject) => {
    const look = () => {
      if (peer.connectionState === "connected") resolve();
      if (peer.connectionState === "failed") reject(new Error("No way to the server was found for WebRTC."));
    };
    setTimeout(() => reject(new Error("WebRTC did not connect in time.")), CONNECT_MS);
    peer.addEventListener("connectionstatechange", look);
    look();
  });
}
