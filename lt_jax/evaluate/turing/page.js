"use strict";
(() => {
  const study = JSON.parse(document.getElementById("study").textContent);
  const $ = (id) => document.getElementById(id);
  const PREFIX = `lt_jax-turing:${study.id}:`;
  const ACTIVE = `${PREFIX}active`; // in sessionStorage: the reader whom a reload goes on with
  const SETTLE = 250; // ms in which a second tap belongs to the image before
  const SIDE = 640; // CSS pixels, at most, where the maker has set no scale
  const n = study.images.length;
  const answers = { real: $("real"), synthetic: $("synthetic") };
  const degrees = [...document.querySelectorAll(".confidence button")];

  // { study, reader: {token, name, years}, started, finished, at, answers: {id: ...}, seen: {id: ms} }
  let session = null;
  let ready = false; // whether the image on view takes an answer
  let since = null; // when it came into view; null while nobody can see it
  let turn = 0; // of `show`: a sheet may be decoded only after the reader has gone on
  const sheets = new Map();

  // ---- Progress, kept in this browser ----
  const read = (key) => {
    try {
      const found = JSON.parse(localStorage.getItem(key));
      return found && found.study === study.id && found.answers && found.reader ? found : null;
    } catch {
      return null;
    }
  };
  const slot = () => PREFIX + (session.reader.name.toLowerCase() || session.reader.token);
  const save = () => {
    try {
      localStorage.setItem(slot(), JSON.stringify(session));
      sessionStorage.setItem(ACTIVE, slot());
      return true;
    } catch {
      warn("This browser does not keep your progress: leave this page open until you are done.");
      return false;
    }
  };
  const saved = () => {
    try {
      return Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)).sort();
    } catch {
      return [];
    }
  };
  const warn = (text) => {
    $("trouble").textContent = text;
    $("trouble").hidden = false;
  };
  const token = () =>
    [...crypto.getRandomValues(new Uint8Array(8))].map((b) => b.toString(16).padStart(2, "0")).join("");
  const answered = (of) => study.images.filter((id) => of.answers[id]).length;

  // ---- Screens ----
  const screen = (name, focus) => {
    for (const id of ["start", "task", "end"]) $(id).hidden = id !== name;
    $(focus).focus({ preventScroll: true });
    window.scrollTo(0, 0);
  };

  const begin = () => {
    session = null;
    ready = false;
    try {
      sessionStorage.removeItem(ACTIVE);
    } catch {} // nothing is kept then
    const rows = saved().map((key) => {
      const held = read(key);
      if (!held) return null;
      const button = document.createElement("button");
      const done = answered(held);
      button.type = "button";
      button.textContent = `${held.reader.name || "No name"}: ${done === n ? "all" : done} of ${n} answered`;
      button.addEventListener("click", () => open(held));
      const row = document.createElement("li");
      row.append(button);
      return row;
    });
    $("sessions").replaceChildren(...rows.filter(Boolean));
    $("begun").hidden = !$("sessions").children.length;
    screen("start", "start-title");
  };

  const open = (held) => {
    session = { ...held, seen: held.seen || {} };
    session.at = Math.min(Math.max(Number(held.at) || 0, 0), n);
    save();
    if (session.at >= n) finish(false);
    else show(true);
  };

  const sheet = (number) => {
    if (!sheets.has(number)) {
      const picture = new Image();
      picture.src = `data:image/png;base64,${study.sheets[number]}`;
      sheets.set(number, picture.decode().then(() => picture));
      if (sheets.size > 2) sheets.delete(sheets.keys().next().value); // phones have little memory
    }
    return sheets.get(number);
  };

  const show = async (arrive = false) => {
    const mine = ++turn;
    const at = session.at;
    const id = study.images[at];
    const places = study.columns * study.rows;
    const canvas = $("image");
    ready = false;
    delete $("task").dataset.ready;
    let picture;
    try {
      picture = await sheet(Math.floor(at / places));
    } catch {
      warn("An image cannot be shown: the page is damaged. Ask for it again; your answers are kept.");
      return;
    }
    if (mine !== turn) return;
    canvas.width = study.width;
    canvas.height = study.height;
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    const place = at % places;
    const [x, y] = [place % study.columns, Math.floor(place / study.columns)];
    const size = [study.width, study.height];
    pen.drawImage(picture, x * size[0], y * size[1], ...size, 0, 0, ...size);
    canvas.setAttribute("aria-label", `Image ${at + 1} of ${n}`);
    $("count").textContent = `Image ${at + 1} of ${n}`;
    $("progress").value = answered(session);
    $("back").disabled = at === 0;
    marks();
    if (arrive) screen("task", "question");
    fit();
    since = document.hidden ? null : performance.now();
    setTimeout(() => {
      if (mine !== turn) return;
      ready = true;
      $("task").dataset.ready = id;
    }, SETTLE);
  };

  /** Shows each pixel of the image as a square of whole screen pixels, as large as there is room. */
  const fit = () => {
    if ($("task").hidden) return;
    const ratio = window.devicePixelRatio || 1;
    const room = [$("stage").clientWidth / study.width, $("stage").clientHeight / study.height];
    const most = study.scale || SIDE / Math.max(study.width, study.height);
    let scale = Math.floor(Math.min(...room) * ratio + 1e-6);
    scale = Math.max(Math.min(scale, Math.floor(most * ratio + 1e-6)), 1);
    const shrink = Math.min(1, ...room.map((space) => (space * ratio) / scale));
    scale *= shrink; // below one only on a screen with fewer pixels than the image
    $("image").style.width = `${(study.width * scale) / ratio}px`;
    $("image").style.height = `${(study.height * scale) / ratio}px`;
    session.screen = { width: innerWidth, height: innerHeight, pixel_ratio: ratio, scale };
  };

  const marks = () => {
    const given = session.answers[study.images[session.at]];
    for (const [name, button] of Object.entries(answers))
      button.setAttribute("aria-pressed", String(given?.answer === name));
    for (const button of degrees) {
      button.disabled = !given;
      button.setAttribute("aria-pressed", String(given?.confidence === Number(button.dataset.value)));
    }
    $("next").disabled = !given;
  };

  /** Adds the time since the image came into view, or into view again, to what it was seen. */
  const clock = () => {
    if (!session || session.at >= n) return;
    const id = study.images[session.at];
    if (since !== null) session.seen[id] = (session.seen[id] || 0) + performance.now() - since;
    since = document.hidden ? null : performance.now();
  };

  // ---- What the reader does ----
  const answer = (value) => {
    if (!ready) return;
    clock();
    const id = study.images[session.at];
    session.answers[id] = {
      answer: value,
      confidence: session.answers[id]?.confidence ?? null,
      milliseconds: Math.round(session.seen[id]),
      time: new Date().toISOString(),
    };
    if (study.confidence) {
      save();
      marks();
    } else next();
  };

  const rate = (value) => {
    const given = ready && session.answers[study.images[session.at]];
    if (!given || !study.confidence) return;
    given.confidence = value;
    next();
  };

  const next = () => {
    if (!ready || !session.answers[study.images[session.at]]) return;
    clock();
    session.at += 1;
    save();
    if (session.at >= n) finish(true);
    else show();
  };

  const back = () => {
    if (!session || session.at === 0) return;
    clock();
    session.at -= 1;
    save();
    show(!$("end").hidden);
  };

  const finish = (now) => {
    turn += 1;
    ready = false;
    const whole = answered(session) === n;
    if (whole && now) session.finished = new Date().toISOString();
    save();
    $("end-title").textContent = whole ? "All images are answered" : `${answered(session)} of ${n} answered`;
    $("told").textContent = whole
      ? "Download the results and send the file to whoever gave you this page."
      : "Your answers are kept in this browser: go on now, or open this page again later.";
    $("resume").textContent = whole ? "Back to the last image" : "Go on";
    $("text").value = results();
    screen("end", "end-title");
    if (whole && now) download();
  };

  const results = () => {
    const { reader, started, finished = null, screen: seen = null } = session;
    const given = study.images
      .filter((id) => session.answers[id])
      .map((id) => ({ id, ...session.answers[id] }));
    return JSON.stringify(
      { version: 1, study: study.id, images: n, reader, started, finished, screen: seen, answers: given }, null, 1);
  };

  const download = () => {
    const name = (session.reader.name || session.reader.token).replace(/[^\p{L}\p{N}_-]+/gu, "_");
    const file = `turing-${study.id.slice(0, 8)}-${name}.json`;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([results()], { type: "application/json" }));
    link.download = file;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    const part = answered(session) < n ? ` It holds the ${answered(session)} answers so far.` : "";
    $("told").textContent =
      `The results were saved as ${file}, where your browser puts downloads.${part} ` +
      "Send that file to whoever gave you this page.";
  };

  // ---- Wiring ----
  $("reader").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = $("name").value.trim();
    const held = name && read(PREFIX + name.toLowerCase());
    const years = $("years").value === "" ? null : Number($("years").value);
    open(
      held || {
        study: study.id,
        reader: { token: token(), name, years },
        started: new Date().toISOString(),
        at: 0,
        answers: {},
        seen: {},
      },
    );
  });
  for (const [name, button] of Object.entries(answers))
    button.addEventListener("click", () => answer(name));
  for (const button of degrees)
    button.addEventListener("click", () => rate(Number(button.dataset.value)));
  $("back").addEventListener("click", back);
  $("next").addEventListener("click", next);
  $("pause").addEventListener("click", () => {
    clock();
    finish(false);
  });
  $("download").addEventListener("click", download);
  $("resume").addEventListener("click", () => (session.at >= n ? back() : show(true)));
  $("leave").addEventListener("click", begin);

  const keys = {
    r: () => answer("real"),
    arrowleft: () => answer("real"),
    s: () => answer("synthetic"),
    arrowright: () => answer("synthetic"),
    u: back,
    backspace: back,
  };
  for (const value of [1, 2, 3, 4, 5]) keys[value] = () => rate(value);
  document.addEventListener("keydown", (event) => {
    if ($("task").hidden || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
    const pressed = event.key.toLowerCase();
    // A focused button does with Enter what it always does.
    if (pressed === "enter" && event.target.tagName !== "BUTTON") next();
    if (!Object.hasOwn(keys, pressed)) return;
    event.preventDefault();
    keys[pressed]();
  });
  document.addEventListener("visibilitychange", () => {
    if ($("task").hidden) return;
    if (document.hidden) {
      clock();
      since = null;
      save();
    } else since = performance.now();
  });
  window.addEventListener("pagehide", () => {
    if ($("task").hidden) return;
    clock();
    save();
  });
  window.addEventListener("storage", (event) => {
    // The same reader goes on in another window: that one is right.
    const held = session && event.key === slot() ? read(event.key) : null;
    if (held) open(held);
  });
  window.addEventListener("resize", fit);

  let active = null;
  try {
    active = sessionStorage.getItem(ACTIVE);
  } catch {} // then the first page is shown
  const held = active && read(active);
  if (held) open(held);
  else begin();
})();
