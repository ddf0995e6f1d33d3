// A live face over a WebSocket: pictures on a canvas, sound by WebAudio, both on the clock of the frames' numbers.

import { theKey } from "./api.js";

const JPEG = 1;
const SOUND = 3;
const HEADER = 16;
const FPS = 25;
const CUSHION = 0.15; // seconds between coming and being played
const STEADY = 4 * FPS; // silent frames in a row after which it is known how early they come at least
const SILENT = 64; // of 32768: what nobody hears
const WAITING = 10 * FPS; // pictures: a viewer who is further behind is taken for gone

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
    this.pictures = new Map(); // frame -> { at: AudioContext time, jpeg }
    this.playing = new Map(); // AudioBufferSourceNode -> frame
    this.zero = null; // AudioContext time of frame 0
    this.shown = 0;
    this.over = new AbortController();
  }

  open() {
    const address = new URL("/v1/live", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    this.socket = new WebSocket(address);
    this.socket.binaryType = "arraybuffer";
    // Browsers keep sound back until the page was touched, and may stop it while the page is hidden.
    const wake = () => this.audio.resume().catch(() => {});
    for (const event of ["visibilitychange", "pointerdown", "keydown"]) {
      document.addEventListener(event, wake, { signal: this.over.signal });
    }
    wake();
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
      // A camera's pictures come without sound: each is shown when it comes.
      const at = this.zero === null ? 0 : this.timeOf(frame);
      this.pictures.set(frame, { at, jpeg: new Uint8Array(data, HEADER) });
      if (this.pictures.size > WAITING) this.pictures.delete(this.pictures.keys().next().value);
    }
  }

  timeOf(frame) {
    return this.zero + frame / FPS;
  }

  play(frame, samples) {
    if (this.audio.state !== "running") {
      if (this.zero !== null) this.forget(0); // its clock stands still: pictures go on, without sound
      return;
    }
    const now = this.audio.currentTime;
    if (this.zero === null || this.timeOf(frame) < now) {
      this.zero = now + CUSHION - frame / FPS;
      this.measure();
    }
    if (this.catchesUp(frame, samples, now)) return;
    const buffer = new AudioBuffer({ length: samples.length, sampleRate: 16000 });
    buffer.copyToChannel(Float32Array.from(samples, (x) => x / 32768), 0);
    const source = new AudioBufferSourceNode(this.audio, { buffer });
    source.connect(this.volume);
    source.start(this.timeOf(frame));
    source.onended = () => this.playing.delete(source);
    this.playing.set(source, frame);
  }

  measure(spare = 0) {
    this.spare = spare; // seconds that all could be played earlier
    this.least = Infinity; // seconds between coming and being played
    this.count = 0; // frames since
  }

  // After a stall all is played later than it must be. Once all has come too early through some seconds of silence,
  // every second portion of it is left out, and what follows is played that much earlier. (Every one would make the
  // face jump.) Twice the cushion stays: what was late once may be late again.
  catchesUp(frame, samples, now) {
    if (samples.some((x) => Math.abs(x) > SILENT)) {
      this.measure(); // speech that was there in advance comes earlier than any other
      return false;
    }
    this.least = Math.min(this.least, this.timeOf(frame) - now);
    if (++this.count === STEADY) this.measure(this.least - 2 * CUSHION);
    if (this.spare < 1 / FPS || frame % 2) return false;
    for (const seconds of ["zero", "least", "spare"]) this[seconds] -= 1 / FPS;
    return true;
  }

  draw = async () => {
    if (this.over.signal.aborted) return;
    const due = [...this.pictures.keys()].filter((frame) => this.pictures.get(frame).at <= this.audio.currentTime);
    try {
      if (due.length) await this.show(Math.max(...due));
    } finally {
      requestAnimationFrame(this.draw);
    }
  };

  // Pictures are decoded only now: what waits, or is never shown in a hidden page, stays small.
  async show(frame) {
    const { jpeg } = this.pictures.get(frame);
    for (const number of this.pictures.keys()) if (number <= frame) this.pictures.delete(number);
    this.shown = frame + 1;
    const picture = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
    const { width, height } = this.canvas;
    if (!this.over.signal.aborted) this.drawing.drawImage(picture, 0, 0, width, height);
    picture.close();
  }

  forget(frame) {
    for (const [source, number] of this.playing) if (number >= frame) source.stop();
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
    if (this.over.signal.aborted) return;
    this.over.abort();
    this.socket.onclose = null;
    this.socket.close();
    this.audio.close();
  }
}
