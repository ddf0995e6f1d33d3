// The webcam: a picture now and then for the server to follow, or one to keep.

const SIDE = 320; // pixels of what is sent
const EVERY_MS = 1000 / 25;

export async function openCamera(video) {
  try {
    const wanted = { video: { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: "user" } };
    video.srcObject = await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    throw new Error(refusal("camera", error));
  }
  await video.play();
}

export function closeCamera(video) {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
}

export async function openMicrophone() {
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, noiseSuppression: true } });
  } catch (error) {
    throw new Error(refusal("microphone", error));
  }
}

// The middle square of what the camera shows, as JPEG.
export function snapshot(video, side = Math.min(video.videoWidth, video.videoHeight), quality = 0.92) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  const from = Math.min(video.videoWidth, video.videoHeight);
  const [x, y] = [(video.videoWidth - from) / 2, (video.videoHeight - from) / 2];
  canvas.getContext("2d").drawImage(video, x, y, from, from, 0, 0, side, side);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", quality));
}

// Sends pictures until `stop` is called, which it returns.
export function follow(video, link) {
  let running = true;
  const send = async () => {
    if (!running) return;
    const begun = performance.now();
    link.sendBinary(await (await snapshot(video, SIDE, 0.8)).arrayBuffer());
    setTimeout(send, Math.max(0, EVERY_MS - (performance.now() - begun)));
  };
  send();
  return () => { running = false; };
}

function refusal(what, error) {
  if (error instanceof TypeError) return `This browser gives no ${what} here: open the page over HTTPS or on localhost.`;
  if (error.name === "NotFoundError") return `There is no ${what}.`;
  if (error.name === "NotAllowedError") return `The ${what} is not allowed: permit it in the browser's address bar.`;
  return `The ${what} cannot be used (${error.message}).`;
}
