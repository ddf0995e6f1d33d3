// The page: what the buttons do.

import { ask, askJson, formOf, leave, reports, sentence, setKey } from "./api.js";
import { closeCamera, follow, openCamera, openMicrophone, snapshot } from "./camera.js";
import { RtcLink } from "./rtc.js";
import { SocketLink } from "./socket.js";

const $ = (id) => document.getElementById(id);
const TAP_MS = 350; // a shorter press keeps the microphone open
const STEER_MS = 80; // between two messages of a moving slider

let source = "sample";
let link = null; // the live connection
let microphone = null;
let stopFollowing = null;
let muted = false;
let job = null;

// ------------------------------------------------------------------------------------------------------------ telling

function complain(error) {
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

function show() {
  const camera = Boolean(stopFollowing);
  const live = Boolean(link) && !camera;
  $("start").textContent = link ? "Stop" : "Bring to life";
  for (const id of ["talk", "hush", "speech-say", "speech-sample", "free"]) $(id).disabled = !live;
  for (const control of document.querySelectorAll("#text button, #sliders input")) control.disabled = !live;
  $("mute").disabled = !live;
  $("camera").textContent = camera ? "Stop the webcam" : "Start the webcam";
  $("camera").setAttribute("aria-pressed", camera);
  $("frame").dataset.state = link ? "live" : "still";
  $("badge").textContent = link ? "Live" : "Still picture";
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
  if (ready && $("start").disabled) framed(source).catch(complain);
  for (const id of ["start", "make-start", "camera"]) if (!job || id !== "make-start") $(id).disabled = !ready;
  setTimeout(lookAtServer, ready ? 10_000 : 1000);
}

$("key").addEventListener("submit", told(() => {
  setKey($("key-value").value);
  $("key").hidden = true;
}));

// --------------------------------------------------------------------------------------------------------------- live

function heard(event) {
  if (event.type === "error") complain(event);
  if (event.type === "said") say("");
  if (event.type === "closing") {
    close();
    complain(new Error(event.error));
  }
}

async function connect(hello) {
  close();
  $("frame").dataset.state = "connecting";
  $("badge").textContent = "Waking up…";
  const wantsSocket = hello.input === "camera" || new URLSearchParams(location.search).get("transport") === "websocket";
  const links = [];
  if (!wantsSocket && "RTCPeerConnection" in window) links.push(() => new RtcLink($("video"), hello, heard));
  links.push(() => new SocketLink($("canvas"), hello, heard));
  try {
    for (const [n, make] of links.entries()) {
      const trying = make();
      try {
        await trying.open();
        link = trying;
        break;
      } catch (error) {
        trying.close();
        if (n === links.length - 1 || error.status) throw error; // refused in words: another way would be, too
      }
    }
  } finally {
    show();
  }
  link.setMuted(muted);
  if (hello.input !== "camera") steer();
}

function close() {
  stopFollowing?.();
  stopFollowing = null;
  closeCamera($("self"));
  $("self").hidden = true;
  microphone?.getTracks().forEach((track) => track.stop());
  microphone = null;
  setListening(false);
  link?.close();
  link = null;
  show();
}

$("start").addEventListener("click", told(async () => {
  if (link) return close();
  await connect({ source, latency: "low" });
  say("It listens. Type something, play a sound, or hold the button and talk.");
}));

addEventListener("pagehide", () => link?.close());

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
    link.listening = on;
    link.send({ type: "listen", on });
  }
  $("talk").setAttribute("aria-pressed", on);
  $("talk").textContent = on ? "Listening…" : "Hold to talk";
}

const press = told(async () => {
  if (!link || pressedAt) return;
  pressedAt = performance.now();
  if (listening) {
    pressedAt = -Infinity; // this press closes it
    return;
  }
  if (!microphone) {
    microphone = await openMicrophone();
    await link.useMicrophone(microphone);
  }
  setListening(true);
});

function release() {
  if (!pressedAt) return;
  const tapped = performance.now() - pressedAt < TAP_MS;
  pressedAt = 0;
  if (!tapped) setListening(false);
}

$("talk").addEventListener("pointerdown", press);
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

async function framed(name) {
  $("still").src = URL.createObjectURL(await (await ask("GET", `/v1/sources/${name}/picture`)).blob());
}

async function choose(name, picture, url) {
  source = name;
  await framed(name); // what will move, and not the whole picture
  $("sample").setAttribute("aria-pressed", name === "sample");
  document.querySelector(".pick").classList.toggle("chosen", name !== "sample");
  if (picture) {
    $("own").src = url;
    $("own").hidden = false;
    $("own-name").textContent = picture.name || "Yours";
  }
  if (link && !stopFollowing) await connect({ source, latency: "low" });
}

async function upload(picture) {
  say("Looking for the face…");
  const { id } = await askJson("POST", "/v1/sources", formOf({ source: picture }));
  say("Found it.");
  await choose(id, picture, URL.createObjectURL(picture));
}

$("sample").addEventListener("click", told(() => choose("sample", null, "sample.png")));
$("picture-file").addEventListener("change", told(async ({ target }) => {
  if (target.files[0]) await upload(target.files[0]);
}));

$("photo").addEventListener("click", told(async () => {
  $("snap").hidden = false;
  await openCamera($("viewfinder"));
  $("snap-take").focus();
}));

function closeSnap() {
  closeCamera($("viewfinder"));
  $("snap").hidden = true;
  $("photo").focus();
}

$("snap-cancel").addEventListener("click", closeSnap);
$("snap-take").addEventListener("click", told(async () => {
  const picture = new File([await snapshot($("viewfinder"))], "photo.jpg", { type: "image/jpeg" });
  closeSnap();
  await upload(picture);
}));

// -------------------------------------------------------------------------------------------------------------- webcam

$("camera").addEventListener("click", told(async () => {
  if (stopFollowing) return close();
  await connect({ source, input: "camera", relative: $("relative").checked });
  try {
    await openCamera($("self"));
  } catch (error) {
    close();
    throw error;
  }
  $("self").hidden = false;
  stopFollowing = follow($("self"), link);
  show();
  say("Look straight ahead for a second, then move.");
}));

// --------------------------------------------------------------------------------------------------------------- video

$("make").addEventListener("submit", told(async () => {
  $("made").hidden = true;
  const file = $("make-file").files[0] || (await bundledSpeech());
  const copies = $("make-copy").checked;
  if (copies && !file.type.startsWith("video/")) throw new Error("Choose a video of a face whose motion shall be copied.");
  const [kind, name] = copies ? ["reenact", "driving"] : ["animate", "audio"];
  $("making").hidden = false;
  $("making-told").textContent = "Uploading…";
  $("progress").removeAttribute("value");
  $("make-start").disabled = true;
  try {
    job = await askJson("POST", `/v1/${kind}?source_id=${encodeURIComponent(source)}`, formOf({ [name]: file }));
    $("make-cancel").hidden = false;
    const last = await watch(job.id);
    if (last.state === "failed") throw new Error(last.error);
    if (last.state === "done") await showVideo(last);
  } finally {
    if (job) leave(`/v1/jobs/${job.id}`);
    job = null;
    $("make-start").disabled = false;
    $("make-cancel").hidden = $("making").hidden = true;
  }
}));

async function watch(id) {
  let last = null;
  for await (const report of reports(id)) {
    last = report;
    if (report.of) $("progress").value = report.frames / report.of;
    const waits = report.state === "waiting" ? "Waiting for its turn…" : "Finding the face, listening…";
    $("making-told").textContent = report.frames ? `${report.frames} of ${report.of} frames` : waits;
  }
  return last;
}

async function showVideo(report) {
  const video = await (await ask("GET", report.video)).blob();
  const url = URL.createObjectURL(video);
  $("made-video").src = $("download").href = url;
  $("made").hidden = false;
  $("download").focus();
  say("The video is done.");
}

$("make-cancel").addEventListener("click", told(() => ask("DELETE", `/v1/jobs/${job.id}`)));

show();
label();
lookAtServer();
