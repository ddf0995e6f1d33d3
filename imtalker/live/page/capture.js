// The microphone's samples as 16-bit integers, 20 ms at a time.

registerProcessor("capture", class extends AudioWorkletProcessor {
  constructor() {
    super();
    this.held = new Int16Array(Math.round(sampleRate / 50));
    this.count = 0;
  }

  process([input]) {
    for (const sample of input[0] || []) {
      this.held[this.count++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.count === this.held.length) {
        this.port.postMessage(this.held.slice().buffer);
        this.count = 0;
      }
    }
    return true;
  }
});
