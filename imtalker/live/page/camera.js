// The webcam: a picture now and then for the server to follow, or one to keep. And the microphone.

const SIDE = 320; // pixels of what is sent
const EVERY_MS = 1000 / 25;

export async function openCamera(video, signal) {
  const wanted = { video: { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: "user" } };
  video.srcObject = await capture("camera", wanted, signal);
  signal.addEventListener("abort", () => { video.srcObject = null; });
  await video.play();
}

export function openMicrophone(signal) {
  return capture("microphone", { audio: { echoCancellation: true, noiseSuppression: true } }, signal);
}

// It is stopped with `signal`, also where the permission is given only after that.
async function capture(what, wanted, signal) {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    signal.throwIfAborted();
    throw new Error(refusal(what, error));
  }
  const stop = () => stream.getTracks().forEach((track) => track.stop());
  signal.addEventListener("abort", stop);
  if (signal.aborted) stop();
  signal.throwIfAborted();
  return stream;
}

// The middle square of what the camera shows, as JPEG.
export function snapshot(video, side = Math.min(video.videoWidth, video.videoHeight), quality = 0.92) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  const from = Math.min(video.videoWidth, video.videoHeight);
  const [x, y] = [(video.videoWidth - from) / 2, (video.videoHeight - from) / 2];
  canvas.getContext("2d").drawImage(video, x, y, from, from, 0, 0, side, side);
  return new Promise((resolve, reject) => {
    const nothing = () => reject(new Error("The camera shows nothing yet: try again."));
    canvas.toBlob((picture) => (picture ? resolve(picture) : nothing()), "image/jpeg", quality);
  });
}

// Sends pictures until `signal` ends it; a moment without one is passed over.
export function follow(video, link, signal) {
  const send = async () => {
    if (signal.aborted) return;
    const begun = performance.now();
    const picture = await snapshot(video, SIDE, 0.8).then((blob) => blob.arrayBuffer()).catch(() => null);
    if (picture && !signal.aborted) link.sendBinary(picture);
    setTimeout(send, Math.max(0, EVERY_MS - (performance.now() - begun)));
  };
  send();
}

function refusal(what, error) {
  if (error instanceof TypeError) return `This browser gives no ${what} here: open the page over HTTPS or on localhost.`;
  if (error.name === "NotFoundError") return `There is no ${what}.`;
  if (error.name === "NotAllowedError") return `The ${what} is not allowed: permit it in the browser's address bar.`;
  return `The ${what} cannot be used (${error.message}).`;
}
