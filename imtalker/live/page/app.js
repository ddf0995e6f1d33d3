// The page: what the buttons do.

import { ask, askJson, formOf, leave, reports, sentence, setKey } from "./api.js";
import { follow, openCamera, openMicrophone, snapshot } from "./camera.js";
import { RtcLink } from "./rtc.js";
import { SocketLink } from "./socket.js";

const $ = (id) => document.getElementById(id);
const TAP_MS = 350; // a shorter press keeps the microphone open
const STEER_MS = 80; // between two messages of a moving slider
const AGAIN_MS = 1000; // until the server is asked again
const TRIES = 15; // that may fail, one after the other
const ENDED = ["done", "failed", "cancelled"]; // states of a job

let chosen = { id: "sample", file: null }; // the picture: its name on the server, and what it was made of
let choosing = new AbortController(); // the last choice of a picture; a newer one ends it
let life = null; // AbortController of all that belongs to a live face, from the wish for it on
let link = null; // its connection, once there is one
let camera = false; // whether the webcam drives it
let microphone = null; // a promise, once it was asked for
let muted = false;
let making = null; // AbortController of the video that is being made

// ------------------------------------------------------------------------------------------------------------ telling

function complain(error) {
  if (error.name === "AbortError") return; // somebody changed their mind
  $("said").textContent = "";
  $("error").textContent = sentence(error.message || String(error));
  $("error").hidden = false;
  if (error.status === 401) $("key").hidden = false;
}

function say(words) {
  $("error").hidden = true;
  $("said").textContent = words;
}

// Wraps what a button does, so that whatever goes wrong is told.
const told = (action) => async (event) => {
  event?.preventDefault?.();
  $("error").hidden = true;
  try {
    await action(event);
  } catch (error) {
    complain(error);
  }
};

// What comes of a promise, unless it is not wanted any more before.
function unless(signal, promise) {
  const over = new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  return Promise.race([promise, over]);
}

function display(element, blob) {
  URL.revokeObjectURL(element.src); // of what it showed before
  element.src = URL.createObjectURL(blob);
}

function show() {
  const live = Boolean(link) && !camera;
  $("start").textContent = link ? "Stop" : life ? "Cancel" : "Bring to life";
  for (const id of ["talk", "hush", "speech-say", "speech-sample", "free"]) $(id).disabled = !live;
  for (const control of document.querySelectorAll("#text button, #sliders input")) control.disabled = !live;
  $("mute").disabled = !live;
  $("camera").textContent = !camera ? "Start the webcam" : link ? "Stop the webcam" : "Cancel";
  $("camera").setAttribute("aria-pressed", camera && Boolean(link));
  $("frame").dataset.state = link ? "live" : life ? "connecting" : "still";
  $("badge").textContent = link ? "Live" : life ? "Waking up…" : "Still picture";
  $("still").hidden = Boolean(link);
  $("video").hidden = !(link instanceof RtcLink);
  $("canvas").hidden = !(link instanceof SocketLink);
  $("link").textContent = link ? `Live over ${link.name}` : "Not connected";
}

// ------------------------------------------------------------------------------------------------------------- server

async function lookAtServer() {
  const health = await askJson("GET", "/health").catch(() => null);
  const ready = health?.state === "ready";
  $("server").dataset.state = ready ? "ready" : "";
  $("server").textContent = ready ? `${health.model} on ${health.device}` : health ? `Server is ${health.state}…` : "No server";
  if (health?.key && !sessionStorage.getItem("imtalker-key")) $("key").hidden = false;
  if (ready && $("start").disabled) framed(choosing.signal).catch(complain);
  for (const id of ["start", "make-start", "camera"]) if (!making || id !== "make-start") $(id).disabled = !ready;
  setTimeout(lookAtServer, ready ? 10_000 : 1000);
}

$("key").addEventListener("submit", told(() => {
  setKey($("key-value").value);
  $("key").hidden = true;
}));

// --------------------------------------------------------------------------------------------------------------- live

function heard(event) {
  if (event.type === "said" || event.type === "face") say("");
  if (event.type === "closing") close();
  if (event.type === "error" || event.type === "closing") complain(new Error(event.error));
}

// One face at a time: this ends the one that is live, or on its way, and is ended by the next.
async function connect(byCamera) {
  close();
  const { signal } = (life = new AbortController());
  camera = byCamera;
  show();
  try {
    const source = await framed(signal);
    const how = camera ? { input: "camera", relative: $("relative").checked } : { latency: "low" };
    link = await opened({ source, ...how }, signal);
    link.setMuted(muted);
    show();
    if (camera) await openCamera($("self"), signal);
  } catch (error) {
    if (!signal.aborted) close();
    throw error;
  }
  if (!camera) return steer();
  $("self").hidden = false;
  follow($("self"), link, signal);
}

async function opened(hello, signal) {
  const wantsSocket = hello.input === "camera" || new URLSearchParams(location.search).get("transport") === "websocket";
  const links = [];
  if (!wantsSocket && "RTCPeerConnection" in window) links.push(() => new RtcLink($("video"), hello, heard));
  links.push(() => new SocketLink($("canvas"), hello, heard));
  for (const [n, make] of links.entries()) {
    const trying = make();
    signal.addEventListener("abort", () => trying.close());
    try {
      await unless(signal, trying.open());
      return trying;
    } catch (error) {
      trying.close();
      const refused = error.status; // in words: another way would be, too
      if (signal.aborted || refused || n === links.length - 1) throw error;
    }
  }
}

function close() {
  setListening(false);
  pressedAt = 0;
  life?.abort();
  life = link = microphone = null;
  camera = false;
  $("self").hidden = true;
  show();
}

// A double click is one wish.
$("start").addEventListener("click", told(async ({ detail }) => {
  if (detail > 1) return;
  if (life) return close();
  await connect(false);
  say("It listens. Type something, play a sound, or hold the button and talk.");
}));

addEventListener("pagehide", () => {
  close();
  making?.abort();
  forget();
});

$("mute").addEventListener("click", () => {
  muted = !muted;
  $("mute").setAttribute("aria-pressed", muted);
  $("mute").textContent = muted ? "Unmute" : "Mute";
  link?.setMuted(muted);
});

$("hush").addEventListener("click", () => link?.send({ type: "interrupt" }));

// ---------------------------------------------------------------------------------------------------------- microphone

let pressedAt = 0;
let listening = false;

function setListening(on) {
  if (on === listening) return;
  listening = on;
  if (link) {
    if (on) link.send({ type: "interrupt" }); // it would not hear while it speaks
    link.listening = on;
    link.send({ type: "listen", on });
  }
  $("talk").setAttribute("aria-pressed", on);
  $("talk").textContent = on ? "Listening…" : "Hold to talk";
}

const press = told(async () => {
  if (!link || pressedAt) return;
  const at = (pressedAt = performance.now());
  if (listening) {
    pressedAt = -Infinity; // this press closes it
    return;
  }
  microphone ??= openMicrophone(life.signal).then((stream) => link.useMicrophone(stream));
  try {
    await unless(life.signal, microphone);
  } catch (error) {
    microphone = null;
    throw error;
  }
  // Who had to let go to permit it shall not be heard by surprise.
  if (pressedAt === at) setListening(true);
  else say("The microphone is ready: hold the button to talk, or tap it.");
});

function release() {
  if (!pressedAt) return;
  const tapped = performance.now() - pressedAt < TAP_MS;
  pressedAt = 0;
  if (!tapped) setListening(false);
}

$("talk").addEventListener("pointerdown", (event) => {
  $("talk").setPointerCapture(event.pointerId); // the release comes wherever it happens
  press(event);
});
for (const event of ["pointerup", "pointercancel", "blur"]) $("talk").addEventListener(event, release);
$("talk").addEventListener("keydown", (event) => {
  if (event.key === " " || event.key === "Enter") {
    event.preventDefault();
    if (!event.repeat) press();
  }
});
$("talk").addEventListener("keyup", (event) => (event.key === " " || event.key === "Enter") && release());
$("talk").addEventListener("contextmenu", (event) => event.preventDefault());

// -------------------------------------------------------------------------------------------------------------- speech

$("text").addEventListener("submit", told(() => {
  const text = $("text-value").value.trim();
  if (text && link) {
    link.send({ type: "text", text });
    say(`It says: ${text}`);
  }
}));

async function speak(file) {
  await ask("POST", `/v1/sessions/${link.session}/speech`, formOf({ audio: file }));
  say(`It speaks ${file.name}.`);
}

$("speech-say").addEventListener("click", told(async () => {
  const file = $("speech-file").files[0];
  if (!file) throw new Error("Choose a sound file first.");
  await speak(file);
}));

async function bundledSpeech() {
  return new File([await (await ask("GET", "/sample.wav")).blob()], "sample.wav", { type: "audio/wav" });
}

$("speech-sample").addEventListener("click", told(async () => speak(await bundledSpeech())));

// ------------------------------------------------------------------------------------------------------------ steering

const AXES = { pose: ["nod", "turn", "tilt"], gaze: ["look", "gaze"] };
const touched = { pose: false, gaze: false };
let steering = null;

function steer() {
  clearTimeout(steering);
  steering = setTimeout(() => {
    const command = { type: "steer", strength: Number($("strength").value) };
    for (const [kind, axes] of Object.entries(AXES)) {
      command[kind] = touched[kind] ? axes.map((axis) => Number($(axis).value)) : null;
    }
    link?.send(command);
  }, STEER_MS);
}

function label() {
  for (const [kind, axes] of Object.entries(AXES)) {
    for (const axis of axes) {
      const degrees = `${Math.round((Number($(axis).value) * 180) / Math.PI)}°`;
      document.querySelector(`output[for=${axis}]`).value = touched[kind] ? degrees : "free";
    }
  }
  document.querySelector("output[for=strength]").value = `${Math.round(Number($("strength").value) * 100)} %`;
}

$("sliders").addEventListener("input", ({ target }) => {
  for (const [kind, axes] of Object.entries(AXES)) if (axes.includes(target.id)) touched[kind] = true;
  label();
  steer();
});

$("free").addEventListener("click", () => {
  touched.pose = touched.gaze = false;
  for (const axis of [...AXES.pose, ...AXES.gaze]) $(axis).value = 0;
  $("strength").value = 1;
  label();
  steer();
});

// ------------------------------------------------------------------------------------------------------------- picture

async function upload(file, signal) {
  return (await askJson("POST", "/v1/sources", formOf({ source: file }), signal)).id;
}

// Shows what will move, and not the whole picture. Returns its name on the server, which forgets pictures that nobody
// used for a while: then it gets this one again.
async function framed(signal) {
  const picture = chosen;
  const get = () => ask("GET", `/v1/sources/${picture.id}/picture`, undefined, signal);
  const answer = await get().catch(async (error) => {
    if (error.status !== 404 || !picture.file) throw error;
    picture.id = await upload(picture.file, signal);
    return get();
  });
  const still = await answer.blob();
  if (picture === chosen) display($("still"), still);
  return picture.id;
}

// The server need not keep a picture that is not wanted any more; should it be, the server gets it again.
function forget() {
  if (chosen.file) leave(`/v1/sources/${chosen.id}`);
}

async function choose(file) {
  choosing.abort();
  const { signal } = (choosing = new AbortController());
  say(file ? "Looking for the face…" : "");
  const id = file ? await upload(file, signal) : "sample";
  say(file ? "Found it." : "");
  forget();
  chosen = { id, file };
  await framed(signal);
  $("sample").setAttribute("aria-pressed", !file);
  document.querySelector(".pick").classList.toggle("chosen", Boolean(file));
  if (file) {
    display($("own"), file);
    $("own").hidden = false;
    $("own-name").textContent = file.name || "Yours";
  }
  if (life) await connect(camera);
}

$("sample").addEventListener("click", told(() => choose(null)));
$("picture-file").addEventListener("change", told(async ({ target }) => {
  const [file] = target.files;
  target.value = ""; // so that the same one can be chosen again
  if (file) await choose(file);
}));

let snapping = null; // AbortController of the camera that takes a picture

$("photo").addEventListener("click", told(async () => {
  snapping?.abort();
  snapping = new AbortController();
  $("snap").hidden = false;
  $("snap-take").disabled = true;
  try {
    await openCamera($("viewfinder"), snapping.signal);
  } catch (error) {
    if (!snapping.signal.aborted) closeSnap();
    throw error;
  }
  $("snap-take").disabled = false;
  $("snap-take").focus();
}));

function closeSnap() {
  snapping.abort();
  $("snap").hidden = true;
  $("photo").focus();
}

$("snap-cancel").addEventListener("click", closeSnap);
$("snap-take").addEventListener("click", told(async () => {
  const picture = new File([await snapshot($("viewfinder"))], "photo.jpg", { type: "image/jpeg" });
  closeSnap();
  await choose(picture);
}));

// -------------------------------------------------------------------------------------------------------------- webcam

$("camera").addEventListener("click", told(async ({ detail }) => {
  if (detail > 1) return;
  if (camera) return close();
  await connect(true);
  say("Look straight ahead for a second, then move.");
}));

// --------------------------------------------------------------------------------------------------------------- video

$("make").addEventListener("submit", told(async () => {
  const copies = $("make-copy").checked;
  const [kind, name] = copies ? ["reenact", "driving"] : ["animate", "audio"];
  const { signal } = (making = new AbortController());
  $("make-start").disabled = true;
  $("made").hidden = true;
  $("making").hidden = false;
  $("making-told").textContent = "Uploading…";
  $("make-cancel").hidden = false;
  $("progress").removeAttribute("value");
  try {
    const file = $("make-file").files[0] || (await bundledSpeech());
    if (copies && (!$("make-file").files.length || file.type.startsWith("audio/"))) {
      throw new Error("Choose a video of a face whose motion shall be copied.");
    }
    const source = encodeURIComponent(await framed(signal));
    const { id } = await askJson("POST", `/v1/${kind}?source_id=${source}`, formOf({ [name]: file }), signal);
    signal.addEventListener("abort", () => leave(`/v1/jobs/${id}`));
    const last = await watch(id, signal);
    const video = last.state === "done" && (await insist(async () => (await ask("GET", last.video)).blob(), signal));
    making.abort(); // nothing more is wanted of it
    if (last.state === "failed") throw new Error(last.error);
    if (video) showVideo(video);
  } finally {
    making = null;
    $("make-start").disabled = false;
    $("make-cancel").hidden = $("making").hidden = true;
  }
}));

// The last report of a job. The connection may break while the job goes on: then the server is asked, and the job
// followed anew.
async function watch(id, signal) {
  for (;;) {
    let report = null;
    try {
      for await (report of reports(id, signal)) tell(report);
    } catch {
      // what is wrong is told by the answer to the next question
    }
    if (!ENDED.includes(report?.state)) {
      report = await insist(() => askJson("GET", `/v1/jobs/${id}`, undefined, signal), signal);
      tell(report);
    }
    if (ENDED.includes(report.state)) return report;
    await pause();
  }
}

function tell(report) {
  if (report.of) $("progress").value = report.frames / report.of;
  const waits = report.state === "waiting" ? "Waiting for its turn…" : "Finding the face, listening…";
  $("making-told").textContent = report.frames ? `${report.frames} of ${report.of} frames` : waits;
}

const pause = () => new Promise((resolve) => setTimeout(resolve, AGAIN_MS));

// Does it again where the way to the server is at fault, and not what is asked for.
async function insist(action, signal) {
  for (let tried = 1; ; tried++) {
    try {
      return await action();
    } catch (error) {
      if (signal.aborted || error.status < 500 || tried === TRIES) throw error;
    }
    await pause();
  }
}

function showVideo(video) {
  display($("made-video"), video);
  $("download").href = $("made-video").src;
  $("made").hidden = false;
  $("download").focus();
  say("The video is done.");
}

$("make-cancel").addEventListener("click", () => making.abort());

show();
label();
lookAtServer();
