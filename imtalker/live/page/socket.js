// A live face over a WebSocket: pictures on a canvas, sound by WebAudio, both on the clock of the frames' numbers.

import { theKey } from "./api.js";

const JPEG = 1;
const SOUND = 3;
const HEADER = 16;
const FPS = 25;
const CUSHION = 0.15; // seconds between coming and being played

export class SocketLink {
  name = "WebSocket";

  constructor(canvas, hello, onEvent) {
    this.canvas = canvas;
    this.drawing = canvas.getContext("2d");
    this.onEvent = onEvent;
    this.audio = new AudioContext();
    this.volume = new GainNode(this.audio);
    this.volume.connect(this.audio.destination);
    this.hello = { ...hello, rate: this.audio.sampleRate };
    if (theKey()) this.hello.key = theKey();
    this.pictures = new Map(); // frame -> ImageBitmap
    this.playing = new Map(); // frame -> AudioBufferSourceNode
    this.zero = null; // AudioContext time of frame 0
    this.shown = 0;
  }

  open() {
    const address = new URL("/v1/live", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    this.socket = new WebSocket(address);
    this.socket.binaryType = "arraybuffer";
    return new Promise((resolve, reject) => {
      this.socket.onopen = () => this.socket.send(JSON.stringify({ type: "hello", ...this.hello }));
      this.socket.onerror = () => reject(new Error("The server does not answer over WebSockets."));
      this.socket.onclose = () => this.onEvent({ type: "closing", error: "The connection to the server is lost" });
      this.socket.onmessage = ({ data }) => {
        if (typeof data !== "string") return this.take(data);
        const event = JSON.parse(data);
        if (event.type === "ready") {
          this.session = event.session;
          [this.canvas.width, this.canvas.height] = event.size;
          this.draw();
          resolve();
        }
        if (event.type === "closing") reject(new Error(event.error));
        if (event.type === "interrupted") this.forget(event.frame);
        this.onEvent(event);
      };
    });
  }

  take(data) {
    const header = new DataView(data);
    const frame = header.getUint32(4, true);
    if (header.getUint8(0) === SOUND) this.play(frame, new Int16Array(data, HEADER));
    if (header.getUint8(0) === JPEG) {
      createImageBitmap(new Blob([new Uint8Array(data, HEADER)], { type: "image/jpeg" }))
        .then((picture) => this.pictures.set(frame, picture));
    }
  }

  play(frame, samples) {
    const now = this.audio.currentTime;
    if (this.zero === null || this.zero + frame / FPS < now) this.zero = now + CUSHION - frame / FPS;
    const buffer = new AudioBuffer({ length: samples.length, sampleRate: 16000 });
    buffer.copyToChannel(Float32Array.from(samples, (x) => x / 32768), 0);
    const source = new AudioBufferSourceNode(this.audio, { buffer });
    source.connect(this.volume);
    source.start(this.zero + frame / FPS);
    source.onended = () => this.playing.delete(frame);
    this.playing.set(frame, source);
  }

  draw = () => {
    if (this.closed) return;
    requestAnimationFrame(this.draw);
    // A camera's pictures come without sound: each is shown when it comes.
    const clock = this.zero === null ? Infinity : Math.floor((this.audio.currentTime - this.zero) * FPS);
    const due = [...this.pictures.keys()].filter((frame) => frame <= clock).sort((a, b) => a - b);
    if (!due.length) return;
    this.shown = due.at(-1) + 1;
    this.drawing.drawImage(this.pictures.get(due.at(-1)), 0, 0, this.canvas.width, this.canvas.height);
    for (const frame of due) {
      this.pictures.get(frame).close();
      this.pictures.delete(frame);
    }
  };

  forget(frame) {
    for (const [number, source] of this.playing) if (number >= frame) source.stop();
    for (const number of this.pictures.keys()) if (number >= frame) this.pictures.delete(number);
    this.zero = null;
  }

  send(command) {
    const told = command.type === "interrupt" ? { ...command, shown: this.shown } : command;
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(told));
  }

  async useMicrophone(stream) {
    await this.audio.audioWorklet.addModule("capture.js");
    const capture = new AudioWorkletNode(this.audio, "capture", { numberOfOutputs: 0 });
    capture.port.onmessage = ({ data }) => this.listening && this.sendBinary(data);
    new MediaStreamAudioSourceNode(this.audio, { mediaStream: stream }).connect(capture);
  }

  sendBinary(data) {
    const waiting = this.socket.bufferedAmount > 500_000; // a slow line: leave out rather than queue
    if (this.socket.readyState === WebSocket.OPEN && !waiting) this.socket.send(data);
    return !waiting;
  }

  setMuted(muted) {
    this.volume.gain.value = muted ? 0 : 1;
  }

  close() {
    this.closed = true;
    this.socket.onclose = null;
    this.socket.close();
    this.audio.close();
  }
}
