// The live panels 1 to 4: controls, threshold microscope, keep curve, candidates, introduced randomness, table of tensors.
//
// Python works everything out and sends small plain parts; this module draws them and says what the user moved. It knows no
// host: an adapter of a few lines calls mount() in Jupyter, in Streamlit and in a page without Python. No imports, no network.
// Order of the file: style, numbers, scales, svg, conversation, controls, panels 1 2 4 3, table, tour, mount.

const STYLE = `
.rp-root { container-type: inline-size; width: 100%; box-sizing: border-box; font: 14px/1.4 system-ui, sans-serif; color: var(--rp-text);
  --rp-text: #1d2129; --rp-muted: #555c68; --rp-line: #c9ced6; --rp-grid: #e6e9ee; --rp-back: #ffffff; --rp-field: #f4f6f8;
  --rp-kept: #0072B2; --rp-pruned: #D55E00; --rp-undecided: #009E73; --rp-focus: #0b57d0; --rp-near: #f3efdf; --rp-empty: #e9ecf0;
  --rp-error: #a3160f; --rp-error-back: #fdecea; --rp-warning-back: #fff4d6; --rp-info-back: #e8f1fb; }
.rp-root.rp-dark { --rp-text: #e8eaee; --rp-muted: #adb4c0; --rp-line: #4a505b; --rp-grid: #31363e; --rp-back: #1b1e23; --rp-field: #272b32;
  --rp-focus: #8ab4f8; --rp-near: #2f2d22; --rp-empty: #30353d;
  --rp-error: #ffb4ab; --rp-error-back: #4a1f1c; --rp-warning-back: #453a17; --rp-info-back: #1f3247; color-scheme: dark; }
.rp-root *, .rp-root *::before { box-sizing: border-box; }
.rp-frame { display: grid; grid-template-columns: minmax(0, 1fr); gap: 12px; }
.rp-side, .rp-root section { min-width: 0; padding: 12px; border: 1px solid var(--rp-line); border-radius: 8px; background: var(--rp-back); }
.rp-root h2, .rp-root h3, .rp-root p, .rp-root figure, .rp-root fieldset { margin: 0; padding: 0; border: 0; min-width: 0; }
.rp-root h2 { font-size: 16px; line-height: 1.3; overflow-wrap: anywhere; }
.rp-root h3 { font-size: 15px; line-height: 1.3; overflow-wrap: anywhere; }
.rp-head { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: baseline; margin-bottom: 6px; }
.rp-badge { font-size: 12px; padding: 0 7px; border: 1px solid var(--rp-line); border-radius: 9px; color: var(--rp-muted); }
.rp-badge:empty, .rp-notices:empty { display: none; }
.rp-root p.sentence { margin-top: 6px; font-size: 13px; color: var(--rp-muted); overflow-wrap: anywhere; }
.rp-legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12px; color: var(--rp-muted); }
.rp-legend span { display: inline-flex; align-items: center; gap: 5px; }
.rp-swatch { width: 14px; height: 12px; border: 1px solid var(--rp-line); }
.rp-swatch.kept, .rp-swatch.both { background: var(--rp-kept); }
.rp-swatch.pruned { background: color-mix(in srgb, var(--rp-pruned) 50%, var(--rp-back)); border-color: var(--rp-pruned); }
.rp-swatch.undecided { background: repeating-linear-gradient(135deg, var(--rp-undecided) 0 3px, #7fceb9 3px 4.5px); }
.rp-swatch.in { background: var(--rp-undecided); }
.rp-swatch.out { background: var(--rp-pruned); }
.rp-swatch.neither { background: var(--rp-empty); }
.rp-root svg { display: block; }
.rp-root svg text { font: 12px system-ui, sans-serif; fill: var(--rp-muted); font-variant-numeric: tabular-nums; }
.rp-root svg text { pointer-events: none; }
.rp-root svg text.rp-strong { fill: var(--rp-text); }
.rp-root svg text.rp-halo { paint-order: stroke; stroke: var(--rp-back); stroke-width: 4px; stroke-linejoin: round; }
.rp-drawing { min-width: 0; overflow: hidden; }
.rp-body { transition: opacity .2s; }
.stale > .rp-body { opacity: .45; }
.rp-late > .rp-body { opacity: .55; transition-delay: .4s; }
.rp-axis, .rp-grid { stroke: var(--rp-line); fill: none; shape-rendering: crispEdges; }
.rp-grid { stroke: var(--rp-grid); }
.rp-near-band { fill: var(--rp-near); }
.rp-bracket { stroke: var(--rp-muted); fill: none; }
.bar { stroke-width: .5; }
.bar.kept { fill: var(--rp-kept); }
.bar.pruned { fill: var(--rp-pruned); fill-opacity: .5; stroke: var(--rp-pruned); }
.bar.undecided { stroke: var(--rp-undecided); }
.inset-bar { fill: var(--rp-muted); }
.rp-window { fill: var(--rp-focus); fill-opacity: .16; stroke: var(--rp-focus); }
.tau-rule { stroke: var(--rp-text); stroke-width: 2; }
.reach-rule { stroke: var(--rp-text); stroke-width: 1.5; stroke-dasharray: 5 4; }
.rp-handle { fill: var(--rp-text); stroke: var(--rp-back); }
.rp-hit { fill: transparent; cursor: ew-resize; touch-action: none; }
.rp-frozen .rp-hit { display: none; }
.curve-line, .sweep-line { stroke: var(--rp-undecided); stroke-width: 2.5; fill: none; }
.sweep-line { stroke: var(--rp-kept); }
.step-line { stroke: var(--rp-text); stroke-width: 1.5; stroke-dasharray: 6 4; fill: none; }
.drawn-dot, .candidate-dot { fill: var(--rp-back); stroke: var(--rp-pruned); stroke-width: 1.5; }
.current-point { fill: var(--rp-text); stroke: var(--rp-back); stroke-width: 1.5; }
.banner, .rp-notice, .rp-alert { margin: 6px 0 0; padding: 5px 9px; border-radius: 6px; font-size: 13px; background: var(--rp-info-back); overflow-wrap: anywhere; }
.rp-root p.banner, .rp-notice.rp-warning { margin-top: 6px; padding: 5px 9px; background: var(--rp-warning-back); }
.rp-root .rp-alert, .rp-root .rp-notice { margin: 0 0 8px; padding: 7px 10px; }
.rp-root .rp-alert, .rp-notice.rp-error { background: var(--rp-error-back); color: var(--rp-error); }
.rp-alert[hidden], .rp-root [hidden] { display: none; }
.rp-root button, .rp-root select, .rp-root input { font: inherit; font-size: 13px; color: var(--rp-text); accent-color: var(--rp-kept); }
.rp-root button, .rp-root select, .rp-root .rp-box { background: var(--rp-field); border: 1px solid var(--rp-line); border-radius: 5px; padding: 2px 7px; min-height: 26px; }
.rp-root button { cursor: pointer; }
.rp-root button:disabled { cursor: default; opacity: .6; }
.rp-root button[aria-pressed=true] { background: var(--rp-kept); border-color: var(--rp-kept); color: #fff; }
.rp-root :focus-visible { outline: 2px solid var(--rp-focus); outline-offset: 1px; }
.rp-controls { display: grid; grid-template-columns: minmax(0, 1fr); gap: 12px; margin-top: 8px; }
.rp-root legend { padding: 0; font-weight: 600; }
.rp-fields { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 190px), 1fr)); gap: 8px 16px; margin-top: 4px; }
.rp-control label { display: flex; gap: 6px; align-items: baseline; font-size: 13px; }
.rp-symbol { font-style: italic; color: var(--rp-muted); }
.rp-follows-word { margin-left: auto; font-size: 12px; color: var(--rp-muted); }
.rp-control:not(.rp-follows) .rp-follows-word { display: none; }
.rp-root .rp-follows .rp-box { color: var(--rp-muted); font-style: italic; }
.rp-follows input[type=range] { opacity: .5; }
.rp-row { display: flex; gap: 8px; align-items: center; }
.rp-row input[type=range] { flex: 1 1 60px; min-width: 60px; margin: 0; }
.rp-row .rp-box { flex: 0 0 104px; width: 104px; text-align: right; font-variant-numeric: tabular-nums; }
.rp-unit { font-size: 12px; color: var(--rp-muted); }
.rp-control select { width: 100%; }
.rp-sweep-control { margin-bottom: 6px; max-width: 260px; }
.rp-code { margin-top: 12px; font-size: 13px; }
.rp-code details { margin-top: 6px; }
.rp-code pre { margin: 6px 0 0; padding: 8px; border-radius: 5px; background: var(--rp-field); font-size: 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
`;

const STYLE_OF_LISTS = `
.rp-strips { display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: 10px; margin-top: 8px; }
.strip svg, .rp-pair svg { width: 100%; max-height: 200px; background: var(--rp-empty); border: 1px solid var(--rp-line); }
.rp-root .rp-pair { margin-top: 10px; }
.rp-pair svg { max-width: 420px; max-height: 420px; }
.rp-cells { shape-rendering: crispEdges; }
.rp-cells.both { fill: var(--rp-kept); }
.rp-cells.in { fill: var(--rp-undecided); }
.rp-cells.out { fill: var(--rp-pruned); }
.strip figcaption { font-size: 12px; color: var(--rp-muted); }
.strip figcaption b { display: block; font-size: 13px; color: var(--rp-text); }
.strip figcaption span { display: block; }
.strip.rp-reference svg { outline: 2px solid var(--rp-kept); }
.strip.rp-winner { outline: 2px dashed var(--rp-text); outline-offset: 3px; border-radius: 2px; }
.rp-root .strip figcaption .rp-emep { color: var(--rp-text); }
.rp-buttons { display: flex; gap: 6px; margin-top: 4px; }
.rp-scroll { overflow: auto; max-width: 100%; }
.rp-matrix { margin-top: 12px; }
.rp-matrix table { border-collapse: collapse; font-size: 12px; }
.rp-matrix th { font-weight: 400; color: var(--rp-muted); padding: 1px 5px; }
.rp-matrix td { padding: 1px; }
.rp-matrix th[scope=row] { position: sticky; left: 0; background: var(--rp-back); text-align: right; }
.rp-root button.cell { width: 38px; min-height: 24px; padding: 0; border: 1px solid transparent; border-radius: 3px; font-size: 12px; font-variant-numeric: tabular-nums; }
.rp-root button.cell[aria-pressed=true] { box-shadow: inset 0 0 0 2px #fff, 0 0 0 2px var(--rp-text); }
.rp-root button.cell:focus-visible { outline: 3px solid var(--rp-focus); outline-offset: 1px; }
.rp-table { max-height: 22rem; border: 1px solid var(--rp-line); border-radius: 5px; contain: content; }
.rp-table table { font-size: 13px; font-variant-numeric: tabular-nums; min-width: 778px; }
.rp-table table, .rp-table thead, .rp-table tbody { display: block; }
.rp-table thead { position: sticky; top: 0; z-index: 1; background: var(--rp-field); }
/* Grids of one pattern, not table rows: only these can be skipped while out of sight, which makes long tables fast. */
.rp-table tr { display: grid; align-items: center; grid-template-columns: minmax(150px, 5fr) minmax(90px, 1.2fr) minmax(84px, 1fr)
  minmax(70px, .8fr) minmax(100px, 1fr) minmax(52px, .6fr) minmax(50px, .6fr) minmax(78px, .8fr) minmax(104px, 1fr); }
.rp-table tbody tr { border-top: 1px solid var(--rp-grid); }
.rp-table.rp-long tbody tr { content-visibility: auto; contain-intrinsic-size: auto 26px; }
.rp-table th { padding: 0; text-align: right; }
.rp-table th button { width: 100%; border: 0; background: none; text-align: inherit; font-weight: 600; white-space: nowrap; }
.rp-table th[aria-sort=ascending] button::after { content: " ▲"; }
.rp-table th[aria-sort=descending] button::after { content: " ▼"; }
.rp-table td { padding: 1px 7px; text-align: right; overflow-wrap: anywhere; min-width: 0; }
.rp-table th:first-child, .rp-table td:first-child { text-align: left; }
.rp-table td.rp-problem { grid-column: span 6; text-align: left; color: var(--rp-error); }
.rp-table td button { border: 0; background: none; padding: 0; text-align: left; text-decoration: underline; overflow-wrap: anywhere; }
.rp-table tr[aria-current] { background: var(--rp-info-back); }
.rp-table tr.rp-light td, .rp-table tr.rp-light button { color: var(--rp-muted); }
.rp-panels { display: grid; grid-template-columns: minmax(0, 1fr); gap: 12px; min-width: 0; }
@container (min-width: 760px) {
  .rp-frame { grid-template-columns: clamp(236px, 31%, 300px) minmax(0, 1fr); align-items: start; }
  .rp-root section[data-panel=table] { grid-column: 1 / -1; }
}
@container (min-width: 1300px) {
  .rp-panels { grid-template-columns: repeat(2, minmax(0, 1fr)); align-items: start; }
  .rp-root section[data-panel=microscope], .rp-root section[data-panel=curve] { grid-column: 1 / -1; }
}
`;

// ---------------------------------------------------------------------------------------------------- numbers and text

const SMALL = 1e-3; // below it, and from LARGE on, numbers are written with an exponent
const LARGE = 1e7;
const THOUSANDS = 1e4; // from here on they are separated
const SEPARATED = new Intl.NumberFormat("en-US", { maximumFractionDigits: 9 }); // made once: making it is slow
const BOX_DIGITS = 10; // a number box must not hide digits that someone typed

/** 4 significant digits, without idle zeros: 0.9375, 5e-5, 12. Nothing is the infinity that JSON cannot say. */
function formatNumber(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return value < 0 ? "-∞" : "∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const short = Number(value.toPrecision(digits));
  if (size >= SMALL && size < LARGE) return size < THOUSANDS ? String(short) : SEPARATED.format(short);
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  return `${Number(mantissa)}e${Number(exponent)}`;
}

/** A count, with separated thousands: 2,359,296. */
function formatCount(value) {
  return SEPARATED.format(Math.round(value));
}

/** A share as a percentage: 0.0812 is "8.12 %". */
function formatPercent(share, digits = 3) {
  return `${formatNumber(share * 100, digits)} %`;
}

/** Names of tensors and files come from anywhere: no text from Python enters a page but through here. */
function escapeText(text) {
  const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return String(text).replace(/[&<>"']/g, (sign) => entities[sign]);
}

/** Long paths differ at both ends: the middle goes. */
function shorten(text, most = 60) {
  const half = Math.floor((most - 1) / 2);
  return text.length <= most ? text : `${text.slice(0, half)}…${text.slice(-half)}`;
}

/** A number as people type it: "5e-5", "0,5", "1,000". NaN for anything else. */
function parseNumber(text) {
  const bare = text.replace(/\s/g, "");
  const thousands = /^[-+]?[1-9]\d{0,2}(,\d{3})+$/.test(bare);
  const plain = thousands ? bare.replaceAll(",", "") : bare.replace(",", ".");
  return plain === "" ? NaN : Number(plain);
}

// -------------------------------------------------------------------------------------------------------------- scales

const DIGIT_WIDTH = 7; // pixels of a digit at 12 px, rounded up: text is never measured, that would force a layout
const LABEL_GAP = 14; // pixels between two tick labels, at least

/** A function from values to pixels, with its way back: a linear one. */
function linearScale(low, high, from, to) {
  const slope = (to - from) / (high - low || 1);
  const scale = (value) => from + (value - low) * slope;
  scale.invert = (pixel) => low + (pixel - from) / slope;
  return scale;
}

/** The same on a log axis; what is not positive goes to the low end. */
function logScale(low, high, from, to) {
  const inner = linearScale(Math.log(low), Math.log(high), from, to);
  return (value) => inner(Math.log(Math.max(value, low)));
}

function textWidth(text) {
  return text.length * DIGIT_WIDTH;
}

/** Round tick values (1, 2 or 5 times a power of ten) with labels that do not run into each other. */
function linearTicks(low, high, pixels, horizontal = true) {
  if (!(high > low)) return [{ value: low, label: formatNumber(low) }];
  for (let most = Math.max(2, Math.floor(pixels / 40)); ; most -= 1) {
    const ticks = ticksAt(low, high, roundStep((high - low) / most));
    const room = (pixels / (high - low)) * (ticks.length > 1 ? ticks[1].value - ticks[0].value : high - low);
    const widest = Math.max(...ticks.map((tick) => textWidth(tick.label)));
    if (most <= 1 || room >= (horizontal ? widest + LABEL_GAP : 24)) return ticks;
  }
}

function roundStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
}

function ticksAt(low, high, step) {
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => {
    const value = (first + i) * step;
    return { value, label: formatNumber(Number(value.toPrecision(12))) };
  });
}

/** Ticks of a log axis: 1, 2 and 5 times the powers of ten, or only these, or only every second, third, ... of them. */
function logTicks(low, high, pixels, horizontal = true) {
  const decades = Math.log10(high / low) || 1;
  for (let stride = 0; stride <= decades; stride += 1) {
    const ticks = stride ? powersOfTen(low, high, stride, [1]) : powersOfTen(low, high, 1, [1, 2, 5]);
    const room = (pixels / decades) * (stride || Math.log10(2));
    const widest = Math.max(0, ...ticks.map((tick) => textWidth(tick.label)));
    if (ticks.length > 1 && room >= (horizontal ? widest + LABEL_GAP : 24)) return ticks;
  }
  return [low, high].map((value) => ({ value, label: formatNumber(value, 2) }));
}

function powersOfTen(low, high, stride, factors) {
  const ticks = [];
  for (let exponent = Math.floor(Math.log10(low)); 10 ** exponent <= high * 1.001; exponent += stride) {
    for (const factor of factors) {
      const value = Number(`${factor}e${exponent}`);
      if (value >= low * 0.999 && value <= high * 1.001) ticks.push({ value, label: formatNumber(value) });
    }
  }
  return ticks;
}

// ----------------------------------------------------------------------------------------------------------------- svg

const LEFT = 58; // margins of panels 1, 2 and 4: the same, so that 1 and 2 share their x axis
const RIGHT = 16;
const LEAST_WIDTH = 240;

const px = (value) => Math.round(value * 100) / 100;

function line(x1, y1, x2, y2, className) {
  return `<line x1="${px(x1)}" y1="${px(y1)}" x2="${px(x2)}" y2="${px(y2)}" class="${className}"/>`;
}

function rect(x, y, width, height, attributes, title = "") {
  const place = `x="${px(x)}" y="${px(y)}" width="${px(width)}" height="${px(height)}"`;
  return `<rect ${place} ${attributes}>${title && `<title>${escapeText(title)}</title>`}</rect>`;
}

function label(x, y, text, anchor = "start", className = "") {
  return `<text x="${px(x)}" y="${px(y)}" text-anchor="${anchor}" class="${className}">${escapeText(text)}</text>`;
}

/** A label centred at x, pushed inside from low to high. */
function labelInside(x, y, text, low, high, className) {
  const half = textWidth(text) / 2;
  return label(Math.min(Math.max(x, low + half), Math.max(high - half, low + half)), y, text, "middle", className);
}

/** A path through points; a null starts a new stroke. */
function strokes(points) {
  let pen = "M";
  let path = "";
  for (const place of points) {
    if (place) path += `${pen}${px(place[0])} ${px(place[1])}`;
    pen = place ? "L" : "M";
  }
  return path;
}

function xAxis(scale, ticks, left, right, y, title) {
  const marks = ticks.map(({ value, label: text }) => {
    const x = scale(value);
    return line(x, y, x, y + 4, "rp-axis") + labelInside(x, y + 17, text, left - LEFT, right + RIGHT);
  });
  return line(left, y, right, y, "rp-axis") + marks.join("") + label((left + right) / 2, y + 34, title, "middle");
}

function yAxis(scale, ticks, left, right, title, titleY) {
  const marks = ticks.map(({ value, label: text }) => {
    const y = scale(value);
    return line(left, y, right, y, "rp-grid") + label(left - 6, y + 4, text, "end");
  });
  return marks.join("") + label(0, titleY, title);
}

/** A legend in html: a swatch of each class with its words. */
function legendHtml(entries) {
  const items = entries.map(([kind, words]) => `<span><i class="rp-swatch ${kind}"></i>${words}</span>`);
  return `<div class="rp-legend">${items.join("")}</div>`;
}

/** Sets text or html only where it changed: elements that stay as they are keep focus, hover and half-done clicks. */
function setHtml(element, html) {
  if (element.rpHtml === html) return;
  element.rpHtml = html;
  element.innerHTML = html;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** The first element of html. */
function elementOf(html) {
  const template = document.createElement("template");
  template.innerHTML = html.trim();
  return template.content.firstElementChild;
}

// -------------------------------------------------------------------------------------------------------- conversation

const HELLO_AGAIN = 1000; // ms
const PATIENCE = 5000; // ms
const BUSY = "No answer for 5 s. The kernel is busy or gone: if it was restarted, run this cell again.";
const GONE = "The kernel is gone: run this cell again.";
const LOOK_AGAIN = 1000; // ms, while a run goes on

/**
 * One question in flight; of those that come meanwhile only the newest is kept. So a drag of 60 events ends on the last
 * one, at the pace of Python, without timers. A page without Python (frozen) asks without waiting for answers.
 */
function createConversation(ask, frozen, busy, showAlert) {
  let lastSeq = 0;
  let inFlight = null;
  let next = null;
  let overdue = false;
  let patience = 0;

  function numbered(question) {
    lastSeq = Math.max(lastSeq + 1, Date.now()); // no reload and no second tab goes back
    return { ...question, seq: lastSeq };
  }

  function send(question) {
    const asked = numbered(question);
    if (!frozen) {
      inFlight = asked;
      clearTimeout(patience);
      patience = setTimeout(complain, PATIENCE);
    }
    ask(asked);
  }

  function complain() {
    overdue = true;
    showAlert(busy);
  }

  function settles(part) {
    // Whatever comes is good enough after a hello, or when Python comes back after a long silence.
    return inFlight && (part.answers === inFlight.seq || inFlight.hello || overdue);
  }

  return {
    ask(question) {
      if (inFlight) next = question;
      else send(question);
    },
    hello() {
      send({ hello: true });
    },
    /** Has anything come? A question of its own kind: it is not waited for, and none is asked while another is in flight. */
    more() {
      if (!inFlight) ask(numbered({ more: true }));
    },
    /** Takes note of a quick part. */
    heard(part) {
      lastSeq = Math.max(lastSeq, part.seq ?? 0, part.answers ?? 0);
      if (inFlight && !settles(part)) return;
      clearTimeout(patience);
      inFlight = null;
      overdue = false;
      showAlert("");
      const waiting = next;
      next = null;
      if (waiting) send(waiting);
    },
    /** Whether the user moved a control to what Python has not answered yet. (A dragged rule moves none by itself.) */
    isAhead() {
      return [inFlight, next].some((question) => question && !question.hello && !question.drag);
    },
    isIdle() {
      return !inFlight;
    },
    end() {
      clearTimeout(patience);
    },
  };
}

// ------------------------------------------------------------------------------------------------------------ controls

const STEPS_A_DECADE = 20;
const FOLLOWING_DIGITS = 4; // of a number that nobody typed
const GROUPS = ["what", "how random", "look"];

/** The values that a slider stops at, each once, from low to high. */
function stopsOf({ low, high, step, scale, whole }) {
  const values = [];
  if (scale === "log") {
    const last = Math.floor(Math.log10(high / low) * STEPS_A_DECADE + 1e-9);
    for (let i = 0; i <= last; i += 1) values.push(low * 10 ** (i / STEPS_A_DECADE));
  } else {
    const stride = step > 0 ? step : (high - low) / 100;
    const last = Math.floor((high - low) / stride + 1e-9);
    const decimals = Math.max(decimalsOf(stride), decimalsOf(low));
    for (let i = 0; i <= last; i += 1) values.push(Number((low + i * stride).toFixed(decimals)));
  }
  const rounded = values.map((value) => {
    if (whole) return Math.round(value);
    return scale === "log" ? Number(value.toPrecision(3)) : value;
  });
  return [...new Set([...rounded, high])].sort((a, b) => a - b); // once each: no key press goes unseen
}

function decimalsOf(value) {
  const [mantissa, exponent] = String(value).split("e");
  return Math.min(Math.max((mantissa.split(".")[1] ?? "").length - Number(exponent ?? 0), 0), 20);
}

/** The place of the stop nearest to a value, by ratio on a log scale. */
function nearestStop(stops, value, scale) {
  const distance = (stop) => (scale === "log" ? Math.abs(Math.log(stop / value)) : Math.abs(stop - value));
  let best = 0;
  stops.forEach((stop, i) => {
    if (distance(stop) < distance(stops[best])) best = i;
  });
  if (value === Infinity) best = stops.length - 1;
  return best;
}

/** Marks an element that takes the keyboard: JupyterLab must leave its keys alone. */
function focusable(element, field, help) {
  element.dataset.lmSuppressShortcuts = "true";
  element.dataset.field = field;
  if (help) {
    element.title = help;
    element.setAttribute("aria-description", help);
  }
  return element;
}

/** The frame that every control shares: a label line above what is moved. */
function controlFrame(control, id) {
  const element = elementOf(`<div class="rp-control" data-control="${escapeText(control.field)}">
    <label for="${id}"><span>${escapeText(control.label)}</span>
      <span class="rp-symbol">${escapeText(control.symbol ?? "")}</span>
      <span class="rp-unit">${escapeText(control.unit ?? "")}</span>
      <span class="rp-follows-word">follows</span></label></div>`);
  return element;
}

/** A slider with its number box, or only the box (kind "number"). show() sets both, onMove hears of the user's moves. */
function createNumberControl(control, id, onMove) {
  const element = controlFrame(control, id);
  const row = element.appendChild(elementOf(`<div class="rp-row"></div>`));
  const hasSlider = control.kind === "slider";
  const hasNone = typeof control.none === "string";
  const stops = hasSlider ? stopsOf(control) : [];
  const box = focusable(document.createElement("input"), control.field, control.help);
  box.type = "text";
  box.className = "rp-box";
  box.inputMode = "decimal";
  box.autocomplete = "off";
  const range = focusable(document.createElement("input"), control.field, control.help);
  range.type = "range";
  range.step = 1;
  range.max = stops.length - 1 + (hasNone ? 1 : 0);
  if (hasSlider) {
    row.append(range);
    box.setAttribute("aria-label", `${control.label} ${control.symbol ?? ""}, number`);
  }
  (hasSlider ? range : box).id = id;
  row.append(box);
  let shown = null;
  let editing = false;

  const asText = (value) => (value === null && hasNone ? control.none : formatNumber(value, BOX_DIGITS));

  function show(value = null) {
    shown = value;
    if (!editing) box.value = asText(value);
    const end = stops.length - 1;
    const place = value === null ? end + (hasNone ? 1 : 0) : nearestStop(stops, value, control.scale);
    if (range.value !== String(place)) range.value = place;
    range.setAttribute("aria-valuetext", `${asText(value)} ${value === null ? "" : (control.unit ?? "")}`.trim());
  }

  function move(value) {
    show(value);
    onMove(value);
  }

  function commit() {
    if (!editing) return;
    editing = false;
    const text = box.value.trim();
    const value = parseNumber(text);
    if (hasNone && (text === "" || text.toLowerCase() === control.none.toLowerCase())) move(null);
    else if (Number.isFinite(value)) move(control.whole ? Math.round(value) : value);
    else show(shown);
  }

  range.addEventListener("input", () => {
    editing = false;
    move(stops[range.value] ?? null);
  });
  box.addEventListener("input", () => {
    editing = true;
  });
  box.addEventListener("blur", commit);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter") commit();
    if (event.key !== "Escape" || !editing) return;
    event.stopPropagation();
    editing = false;
    show(shown);
  });
  return { element, show, inputs: [range, box] };
}

/** A select; options are [{value, label}], or {group, options} for those under a heading. */
function createSelect(control, id, onMove) {
  const element = controlFrame(control, id);
  const select = element.appendChild(focusable(document.createElement("select"), control.field, control.help));
  select.id = id;
  const values = new Map(); // a select knows only strings
  const optionOf = ({ label: text, value }) => {
    values.set(String(value), value);
    return new Option(text, value);
  };
  for (const option of control.options) {
    if (!option.group) select.append(optionOf(option));
    else {
      const group = select.appendChild(document.createElement("optgroup"));
      group.label = option.group;
      group.append(...option.options.map(optionOf));
    }
  }
  select.addEventListener("change", () => onMove(values.get(select.value)));
  const show = (value) => {
    if (select.value !== String(value)) select.value = value;
  };
  return { element, show, inputs: [select] };
}

/**
 * All controls, in the side column (the choice of what panel 4 sweeps stands in that panel). `view` is what mount() shares
 * with its parts; see there.
 */
function createControls(view) {
  const { side, sweepSlot } = view.places;
  let described = "";
  let items = []; // {control, item}
  let selects = []; // of the source: {read, item}

  const follows = (control) => control.rules?.length > 0 && !control.rules.includes(view.state.randomness);

  function move(control, value) {
    // Where something else rules from now on, all that followed stays where it was, or the picture would jump.
    const change = follows(control) || control.field === "randomness" ? whereItStands() : {};
    if (follows(control)) change.randomness = control.rules[0];
    view.propose({ ...change, [control.field]: value });
  }

  function whereItStands() {
    const { samples, power, sampling_ratio, target_ir } = view.derived ?? view.state;
    const standing = { samples: Math.max(1, Math.round(samples)), power };
    if (sampling_ratio > 0) standing.sampling_ratio = sampling_ratio;
    if (target_ir > 0) standing.target_ir = target_ir;
    return standing;
  }

  function build(part) {
    if (described === JSON.stringify(part)) return;
    described = JSON.stringify(part);
    const groups = [...new Set([...GROUPS, ...part.controls.map((control) => control.group)])];
    const fieldsets = new Map(groups.map((name) => [name, fieldsetOf(name)]));
    items = part.controls.map((control) => {
      const create = control.kind === "select" ? createSelect : createNumberControl;
      const item = create(control, `${view.id}-${control.field}`, (value) => move(control, value));
      for (const input of item.inputs) input.disabled = view.frozen;
      return { control, item };
    });
    keepFocus(view.root, () => {
      sweepSlot.replaceChildren();
      for (const { control, item } of items) {
        const place = control.field === "sweep" ? sweepSlot : fieldsets.get(control.group).lastElementChild;
        if (view.offers(control.field)) place.append(item.element);
      }
      const used = [...fieldsets.values()].filter((fieldset) => fieldset.lastElementChild.childElementCount);
      side.querySelector(".rp-groups").replaceChildren(...used);
    });
    refresh();
  }

  function fieldsetOf(name) {
    return elementOf(`<fieldset><legend>${escapeText(name)}</legend><div class="rp-fields"></div></fieldset>`);
  }

  function buildSource(part) {
    const title = side.querySelector("h2");
    title.textContent = shorten(part.model ?? "");
    title.title = part.model ?? "";
    const named = (tensor) => ({ value: tensor.name, label: `${tensor.name}  (${tensor.shape.join(" x ")})` });
    const others = part.tensors.filter((tensor) => !tensor.prunable).map(named);
    const options = part.tensors.filter((tensor) => tensor.prunable).map(named);
    if (others.length) options.push({ group: "not pruned by default", options: others });
    const tensors = { field: "tensor", label: "tensor", options };
    selects = [
      {
        read: (state) => state.tensor,
        item: createSelect(tensors, `${view.id}-tensor`, (tensor) => view.propose({ tensor })),
      },
    ];
    if (part.moments?.length > 1) selects.push(momentSelect(part.moments));
    const fields = side.querySelector(".rp-source");
    keepFocus(view.root, () => fields.replaceChildren(...selects.map(({ item }) => item.element)));
    refresh();
  }

  function momentSelect(moments) {
    const key = ({ stage, moment }) => `${stage}:${moment}`;
    const options = moments.map((entry) => ({ value: key(entry), label: entry.label }));
    const item = createSelect({ field: "moment", label: "moment", options }, `${view.id}-moment`, (chosen) => {
      const { stage, moment } = moments.find((entry) => key(entry) === chosen);
      view.propose({ stage, moment });
    });
    return { read: key, item };
  }

  /** Shows the state; what follows shows what it comes to. */
  function refresh() {
    if (!view.state) return;
    for (const { control, item } of items) {
      const following = follows(control);
      item.element.classList.toggle("rp-follows", following);
      const values = following && view.derived ? view.derived : view.state;
      const value = values[control.field] ?? null;
      item.show(following && Number.isFinite(value) ? Number(value.toPrecision(FOLLOWING_DIGITS)) : value);
    }
    for (const { read, item } of selects) item.show(read(view.state));
  }

  return { build, buildSource, refresh };
}

/** Runs `rebuild` and gives the focus back to the element that had it, or to its successor. */
function keepFocus(root, rebuild) {
  const focused = root.getRootNode().activeElement;
  const inside = focused && root.contains(focused) && focused !== root;
  const { field, key } = inside ? focused.dataset : {};
  const kind = inside ? focused.type : "";
  rebuild();
  if (!inside || root.getRootNode().activeElement === focused) return;
  const alike = [...root.querySelectorAll(key ? "[data-key]" : "[data-field]")];
  const successor = alike.find((element) =>
    key ? element.dataset.key === key : element.dataset.field === field && element.type === kind,
  );
  successor?.focus({ preventScroll: true });
}

// ------------------------------------------------------------------------------------- panel 1: threshold microscope

const KINDS = ["kept", "undecided", "pruned"]; // from bottom to top
const SCOPE = { top: 74, plot: 200, axis: 44, inset: 40, insetAxis: 40 }; // heights, in pixels
const HIT = 26; // width of what the mouse can take a rule by

/** The panel as html of one svg group. `rules` are the magnitudes of tau and reach as shown: while dragged, the pointer's. */
function drawMicroscope(part, { low, high }, rules, width, id) {
  const right = width - RIGHT;
  const bottom = SCOPE.top + SCOPE.plot;
  const x = linearScale(low, high, LEFT, right);
  const perBar = part.tau > 0 ? 0.01 * part.tau : 1;
  const heights = part.edges.slice(1).map((edge, i) => {
    const density = perBar / (edge - part.edges[i] || 1);
    return { from: part.edges[i], to: edge, parts: KINDS.map((kind) => part[kind][i] * density) };
  });
  const visible = heights.filter(({ from, to }) => to > low && from < high);
  const most = Math.max(0, ...visible.map(({ parts }) => parts.reduce((sum, height) => sum + height, 0))) || 1;
  const y = linearScale(0, most * 1.05, bottom, SCOPE.top);
  const yTicks = linearTicks(0, most * 1.05, SCOPE.plot, false);
  return (
    hatching(id, right) +
    nearBand(part.near, x, low, high) +
    yAxis(y, yTicks, LEFT, right, part.unit, 14) +
    `<g clip-path="url(#${id}-clip)" fill="url(#${id}-hatch)">${bars(part, heights, x, y)}</g>` +
    xAxis(x, linearTicks(low, high, right - LEFT), LEFT, right, bottom, "magnitude abs(w)") +
    drawRules(rules, x, low, high, width) +
    nearBracket(part.near, x, low, high) +
    drawInset(part.inset, low, high, right, bottom + SCOPE.axis)
  );
}

/** Undecided bars are hatched: colour is not the only sign. Bars of a window that is being dragged away are clipped. */
function hatching(id, right) {
  return `<defs><pattern id="${id}-hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
    <rect width="5" height="5" fill="var(--rp-undecided)"/><line x1="0" y1="0" x2="0" y2="5" stroke="#fff" stroke-opacity=".55" stroke-width="1.6"/>
    </pattern><clipPath id="${id}-clip"><rect x="${LEFT}" y="0" width="${right - LEFT}" height="${SCOPE.top + SCOPE.plot}"/></clipPath></defs>`;
}

function bars(part, heights, x, y) {
  const ends = part.edges.map((edge) => formatNumber(edge)); // most of the time of a frame goes into these words
  let html = "";
  heights.forEach(({ from, to, parts }, i) => {
    const left = x(from);
    const width = Math.max(x(to) - left - 0.5, 0.5);
    let below = 0;
    KINDS.forEach((kind, k) => {
      const count = part[kind][i];
      if (!(count > 0)) return;
      const top = y(below + parts[k]);
      const title = `${ends[i]} to ${ends[i + 1]}: ${formatCount(count)} weights ${kind}`;
      html += rect(left, top, width, Math.max(y(below) - top, 0.5), `class="bar ${kind}" data-count="${count}"`, title);
      below += parts[k];
    });
  });
  return html;
}

/** The band from 2/3 to 4/3 of tau, where the paper counts the weights that a hair's breadth moves over the cut. */
function nearBand(near, x, low, high) {
  const [from, to] = near.map((edge) => x(Math.min(Math.max(edge, low), high)));
  if (!(to > from)) return "";
  return rect(from, SCOPE.top, to - from, SCOPE.plot, `class="rp-near-band"`, "from 2/3 to 4/3 of tau");
}

/** A bracket over the band; what of it lies outside the window has no end and no word. */
function nearBracket(near, x, low, high) {
  const [left, right] = near.map((edge) => x(Math.min(Math.max(edge, low), high)));
  const y = SCOPE.top - 6;
  const wide = right - left > 130; // else the words stand outside the bracket
  const end = (at, word, toTheRight) =>
    line(at, y, at, y + 6, "rp-bracket") +
    label(at + (toTheRight ? 3 : -3), y - 4, word, toTheRight ? "start" : "end", "rp-halo");
  return [
    right > left ? line(left, y, right, y, "rp-bracket") : "",
    near[0] >= low ? end(left, "2/3 tau", wide) : "",
    near[1] <= high ? end(right, "4/3 tau", !wide) : "",
  ].join("");
}

function drawRules({ tau, reach }, x, low, high, width) {
  const parts = [];
  const right = width - RIGHT;
  const words = `reach r at ${formatNumber(reach)}`;
  if (reach !== null && (reach < low || reach > high)) {
    parts.push(reach < low ? label(LEFT, 46, `◂ ${words}`) : label(right, 46, `${words} ▸`, "end"));
  } else if (reach !== null) {
    const [at, below] = [x(reach), reach < tau]; // its words stand on the side away from tau
    const edge = below ? Math.max(at + 4, textWidth(words)) : Math.min(at - 4, width - textWidth(words));
    parts.push(label(edge, 46, words, below ? "end" : "start", "rp-strong rp-halo"));
    parts.push(drawRule("reach", at, 46, words));
  }
  const [at, name] = [x(Math.min(Math.max(tau, low), high)), `tau = ${formatNumber(tau)}`];
  parts.push(labelInside(at, 30, name, LEFT, right, "rp-strong rp-halo"), drawRule("threshold", at, 30, name));
  return parts.join("");
}

function drawRule(rule, x, labelY, text) {
  const bottom = SCOPE.top + SCOPE.plot;
  const className = rule === "reach" ? "reach-rule" : "tau-rule";
  const handleY = rule === "reach" ? bottom - 40 : bottom - 16; // apart, as both may stand at one place
  return (
    line(x, labelY + 4, x, bottom, className) +
    `<path class="rp-handle" d="M${px(x - 11)} ${handleY}l8 -7v14zM${px(x + 11)} ${handleY}l-8 -7v14z"/>` +
    rect(x - HIT / 2, labelY, HIT, bottom - labelY, `class="rp-hit" data-rule="${rule}"`, `${text}: drag it`)
  );
}

/** The whole distribution on a log axis, and where the window of the microscope lies in it. */
function drawInset({ edges, counts }, low, high, right, top) {
  if (!counts.length) return "";
  const [first, last, bottom] = [edges[0], edges[edges.length - 1], top + SCOPE.inset];
  const x = logScale(first, last, LEFT, right);
  const y = linearScale(0, Math.max(...counts), bottom, top);
  const inside = (value) => Math.min(x(value), right);
  const html = counts.map((count, i) => {
    if (!(count > 0)) return "";
    const height = Math.max(bottom - y(count), 1); // a single weight far out is worth seeing
    const title = `${formatNumber(edges[i])} to ${formatNumber(edges[i + 1])}: ${formatCount(count)} weights`;
    const width = Math.max(x(edges[i + 1]) - x(edges[i]) - 0.5, 0.5);
    return rect(x(edges[i]), bottom - height, width, height, `class="inset-bar"`, title);
  });
  const frame = rect(inside(low), top - 2, Math.max(inside(high) - inside(low), 2), SCOPE.inset + 4, `class="rp-window"`);
  const ticks = logTicks(first, last, right - LEFT);
  return html.join("") + frame + xAxis(x, ticks, LEFT, right, bottom, "all weights (log axis), and the window above");
}

// ----------------------------------------------------------------------------------------------- panel 2: keep curve

const CURVE = { top: 24, plot: 170, axis: 44 };
const WORDS_WIDTH = 116; // pixels that the words beside a line take, about

function drawCurve(part, { low, high }, tau, dots, width) {
  const right = width - RIGHT;
  const bottom = CURVE.top + CURVE.plot;
  const x = linearScale(low, high, LEFT, right);
  const y = linearScale(0, 1, bottom, CURVE.top);
  const inside = (magnitude) => magnitude >= low && magnitude <= high;
  const points = part.magnitudes.map((magnitude, i) => inside(magnitude) && [x(magnitude), y(part.q[i])]);
  const step = [
    [LEFT, bottom],
    [x(tau), bottom],
    [x(tau), y(1)],
    [right, y(1)],
  ];
  const marks = dots.magnitudes.map((magnitude, i) =>
    inside(magnitude)
      ? `<circle class="drawn-dot" r="3" cx="${px(x(magnitude))}" cy="${px(y(dots.kept[i]))}"><title>${formatPercent(dots.kept[i])} of the draws kept weights of ${formatNumber(magnitude)}</title></circle>`
      : "",
  );
  return (
    yAxis(y, linearTicks(0, 1, CURVE.plot, false), LEFT, right, "chance to be kept q", 12) +
    xAxis(x, linearTicks(low, high, right - LEFT), LEFT, right, bottom, "magnitude abs(w)") +
    `<path class="step-line" d="${strokes(step)}"/><path class="curve-line" d="${strokes(points)}"/>` +
    marks.join("") +
    curveWords(part, x(tau), y, dots.magnitudes.length > 0, right)
  );
}

/** What each line is, written beside it: left of tau there is room above the curve, right of tau below it. */
function curveWords(part, tauX, y, hasDots, right) {
  const beyond = part.q[Math.floor(part.q.length * 0.55)] ?? 1;
  const start = Math.min(tauX + 10, right - WORDS_WIDTH); // tau is off the middle while it is dragged
  const end = Math.max(tauX - 10, LEFT + WORDS_WIDTH);
  const first = y(beyond > 0.45 ? 0.3 : 0.88); // a flat curve runs low: then the words go to the top
  const words = (x, at, anchor, sign, text, tone = "") =>
    `<text x="${px(x)}" y="${px(at)}" text-anchor="${anchor}" class="rp-strong rp-halo"><tspan style="fill:${tone}">${sign}</tspan> ${text}</text>`;
  return (
    words(end, y(0.85), "end", "━━", "randomized:", "var(--rp-undecided)") +
    label(end, y(0.85) + 15, "chance q", "end", "rp-strong rp-halo") +
    words(start, first, "start", "╍╍", "magnitude") +
    label(start, first + 15, "pruning: a hard step", "start", "rp-strong rp-halo") +
    (hasDots ? words(start, first + 30, "start", "○", "as drawn", "var(--rp-pruned)") : "")
  );
}

// --------------------------------------------------------------------------------------- panel 4: introduced randomness

const RANDOMNESS = { top: 24, plot: 200, axis: 44 };
const LOG_FROM = 20; // a log axis shows an ir that spans more than this
const JITTER = 12; // pixels, so that dots of one x do not hide each other

/** The swept line, the current point and the ir of the drawn candidates; `point`, `sweep` may be missing. */
function drawRandomness(sweep, point, drawn, width) {
  const right = width - RIGHT;
  const bottom = RANDOMNESS.top + RANDOMNESS.plot;
  const here = point ? point.values[sweep.field] : undefined;
  const known = sweep.ir.filter(Number.isFinite);
  const irs = [...known, ...drawn.map(({ ir }) => ir), point?.ir].filter(Number.isFinite);
  const { x, ticks: xTicks } = sweptScale(sweep, here, right);
  const { y, ticks: yTicks } = irScale(irs, bottom);
  const at = (value) => (value === null ? right : x(value)); // no value: without a limit, beyond the last
  const height = (ir) => (Number.isFinite(ir) ? y(ir) : RANDOMNESS.top);
  const points = sweep.x.map((value, i) => Number.isFinite(sweep.ir[i]) && [x(value), y(sweep.ir[i])]);
  const dots = drawn.map(({ slot, number, ir }) => {
    const jitter = JITTER * (((slot * 7) % 5) / 2 - 1);
    const title = `mask ${number}: ir = ${formatNumber(ir)}`;
    return `<circle class="candidate-dot" r="3" cx="${px(at(here) + jitter)}" cy="${px(height(ir))}"><title>${escapeText(title)}</title></circle>`;
  });
  const name = [sweep.label, sweep.symbol, sweep.unit && `(${sweep.unit})`].filter(Boolean).join(" ");
  return (
    yAxis(y, yTicks, LEFT, right, "introduced randomness ir", 12) +
    xAxis(x, xTicks, LEFT, right, bottom, name) +
    `<path class="sweep-line" d="${strokes(points)}"/>` +
    (here === undefined ? "" : currentPoint(at(here), height(point.ir), point.ir, known[0] > known.at(-1), right) + dots.join(""))
  );
}

/** The point with its words on the side where the line is not. */
function currentPoint(x, y, ir, falling, right) {
  const text = `ir = ${formatNumber(ir)}`;
  const aside = (textWidth(text) / 2 + JITTER + 6) * (falling ? 1 : -1);
  return (
    `<circle class="current-point" r="5.5" cx="${px(x)}" cy="${px(y)}"/>` +
    labelInside(x + aside, Math.max(y - 8, RANDOMNESS.top + 5), text, LEFT, right, "rp-strong rp-halo")
  );
}

function sweptScale(sweep, here, right) {
  const log = sweep.scale === "log";
  const values = [...sweep.x, here].filter((value) => Number.isFinite(value) && (!log || value > 0));
  const low = values.length ? Math.min(...values) : 1;
  const high = Math.max(...values, low + (values.length > 1 ? 0 : 1));
  if (log) return { x: logScale(low, high, LEFT, right), ticks: logTicks(low, high, right - LEFT) };
  return { x: linearScale(low, high, LEFT, right), ticks: linearTicks(low, high, right - LEFT) };
}

function irScale(irs, bottom) {
  const positive = irs.filter((ir) => ir > 0);
  const high = Math.max(...positive, 0) || 1;
  const low = Math.min(...positive, high);
  if (high / low > LOG_FROM) {
    const ticks = logTicks(low / 1.3, high * 1.3, RANDOMNESS.plot, false);
    return { y: logScale(low / 1.3, high * 1.3, bottom, RANDOMNESS.top), ticks };
  }
  const ticks = linearTicks(0, high * 1.1, RANDOMNESS.plot, false);
  return { y: linearScale(0, high * 1.1, bottom, RANDOMNESS.top), ticks };
}

// ------------------------------------------------------------------------------------------------ panel 3: candidates

const KEYS = `data-lm-suppress-shortcuts="true"`;
const CIVIDIS = ["#00224e", "#2a3f6d", "#575d6d", "#7d7c78", "#a59c74", "#d2c060", "#fee838"];
const CLASSES = [
  ["both", "kept by both"],
  ["in", "swapped in"],
  ["out", "swapped out"],
  ["neither", "pruned by both"],
];

/** The bits of a crop, row by row, as numpy.packbits packs them: the first cell is the highest bit. */
function unpackBits(base64, count) {
  const bytes = atob(base64);
  return Uint8Array.from({ length: count }, (_, i) => (bytes.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1);
}

/** Two crops cell by cell, as an svg with one path per class, made of runs along the rows; and how often each class is there. */
function compareCrops(mask, reference, { rows, columns }, title) {
  const paths = { both: "", in: "", out: "" };
  const counts = { both: 0, in: 0, out: 0, neither: 0 };
  const classOf = (i) => (mask[i] ? (reference[i] ? "both" : "in") : reference[i] ? "out" : "neither");
  for (let row = 0; row < rows; row += 1) {
    for (let from = 0, to; from < columns; from = to) {
      const kind = classOf(row * columns + from);
      for (to = from + 1; to < columns && classOf(row * columns + to) === kind; ) to += 1;
      counts[kind] += to - from;
      if (kind !== "neither") paths[kind] += `M${from} ${row}h${to - from}v1h${from - to}z`;
    }
  }
  const drawn = Object.entries(paths).map(([kind, path]) => `<path class="rp-cells ${kind}" d="${path}"/>`);
  const svg = `<svg viewBox="0 0 ${columns} ${rows}" role="img" aria-label="${escapeText(title)}">${drawn.join("")}</svg>`;
  return { svg, counts };
}

/** The cividis colour of a share of the way, with the text colour that can be read on it. */
function cividis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1);
  const from = Math.min(Math.floor(place), CIVIDIS.length - 2);
  const channels = [1, 3, 5].map((at) => {
    const [a, b] = [CIVIDIS[from], CIVIDIS[from + 1]].map((colour) => parseInt(colour.slice(at, at + 2), 16));
    return Math.round(a + (b - a) * (place - from));
  });
  return { back: `rgb(${channels})`, text: luminance(channels) > 0.18 ? "#000" : "#fff" };
}

/** Relative luminance (WCAG) of a colour; above 0.18 black text has the better contrast. */
function luminance(channels) {
  const [r, g, b] = channels.map((channel) => {
    const share = channel / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** Strips, agreement matrix and the difference of a pair; view.state says what is pinned and which pair is looked at. */
function createCandidates(view, panel) {
  panel.body.innerHTML = `${legendHtml(CLASSES)}
    <p class="sentence rp-against"></p><div class="rp-strips"></div>
    <div class="rp-matrix" hidden><p class="sentence">% of kept weights shared (click a cell: the difference of that pair)</p>
    <div class="rp-scroll"><table><thead><tr></tr></thead><tbody></tbody></table></div></div>
    <figure class="rp-pair" hidden></figure><p class="rp-notice rp-error" hidden></p>`;
  const find = (selector) => panel.body.querySelector(selector);
  const [strips, pairBox, matrix] = [find(".rp-strips"), find(".rp-pair"), find(".rp-matrix")];
  let part = null;
  let masks = []; // the unpacked crops, as part.drawn
  let shownChoice = "";

  panel.body.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button || !view.state) return;
    const { action, row, column } = button.dataset;
    const slot = Number(button.closest("[data-slot]")?.dataset.slot);
    if (action === "pin") view.propose({ pinned: view.state.pinned === slot ? null : slot });
    if (action === "reroll") view.propose({ rerolled: [...(view.state.rerolled ?? []), slot] });
    if (row !== undefined) {
      const pair = [Number(row), Number(column)];
      view.propose({ pair: String(pair) === String(view.state.pair) ? null : pair });
    }
    refresh();
  });

  function update(next) {
    part = next;
    masks = part.drawn.map(({ kept }) => unpackBits(kept, part.crop.rows * part.crop.columns));
    panel.title(part);
    panel.badge.textContent = `${part.done} of ${part.total} ${part.badge ?? "drawn"}`;
    shownChoice = "";
    refresh();
  }

  /** Draws again if something else is pinned or paired than before. */
  function refresh() {
    const choice = JSON.stringify([view.state?.pinned, view.state?.pair]);
    if (!part || choice === shownChoice) return;
    shownChoice = choice;
    const failed = find(".rp-error");
    failed.hidden = !part.failed;
    setText(failed, part.failed ?? "");
    keepFocus(view.root, () => {
      drawStrips();
      drawMatrix();
      drawPair();
    });
  }

  function drawStrips() {
    const pinned = part.drawn.findIndex(({ slot }) => slot === view.state?.pinned);
    const reference = Math.max(pinned, 0);
    const { crop } = part;
    const lines = (first, count) => (count > 1 ? `${first + 1} to ${first + count}` : first + 1);
    const place = `rows ${lines(crop.top, crop.rows)}, columns ${lines(crop.left, crop.columns)} of ${crop.of.map(formatCount).join(" x ")}`;
    const against = part.drawn[reference]?.label ?? "the plain mask";
    setText(find(".rp-against"), `Compared with ${against}; ${place}. ir and swapped: against the plain mask, all weights.`);
    while (strips.childElementCount > part.drawn.length) strips.lastElementChild.remove();
    part.drawn.forEach((entry, i) => {
      const figure = strips.children[i] ?? strips.appendChild(createStrip());
      figure.dataset.slot = entry.slot;
      figure.classList.toggle("rp-reference", i === reference);
      const [drawing, caption, buttons] = figure.children;
      setHtml(drawing, compareCrops(masks[i], masks[reference], crop, `${entry.label} compared with ${against}`).svg);
      figure.classList.toggle("rp-winner", Boolean(entry.winner));
      const numbers = `<span>ir ${formatNumber(entry.ir)}</span><span>swapped ${formatPercent(entry.swapped)}</span>`;
      const judged = [entry.emep, entry.winner && "winner"].filter(Boolean).join(", ");
      const score = judged && `<span class="rp-emep">${escapeText(judged)}</span>`;
      setHtml(caption, `<b>${escapeText(entry.label)}</b>${score}${numbers}`);
      const [pin, reroll] = buttons.children;
      pin.setAttribute("aria-pressed", i === pinned);
      pin.setAttribute("aria-label", `pin ${entry.label}: the others are compared with it`);
      reroll.setAttribute("aria-label", `reroll ${entry.label}: draw another in its place`);
      reroll.hidden = entry.slot === 0;
    });
  }

  function createStrip() {
    return elementOf(`<figure class="strip"><div></div><figcaption></figcaption><div class="rp-buttons">
      <button type="button" data-action="pin" ${KEYS}>pin</button>
      <button type="button" data-action="reroll" ${KEYS} ${view.frozen ? "disabled" : ""}>reroll</button></div></figure>`);
  }

  const nameOf = (i) => (part.drawn[i]?.slot ? String(part.drawn[i].number) : "plain");

  function drawMatrix() {
    const { agreement } = part;
    const others = agreement.flatMap((row, i) => row.filter((_, j) => j !== i));
    const low = Math.min(...others, 1);
    const [head, body] = [matrix.querySelector("thead tr"), matrix.querySelector("tbody")];
    matrix.hidden = agreement.length < 2;
    setHtml(head, `<td></td>${agreement.map((_, i) => `<th scope="col">${escapeText(nameOf(i))}</th>`).join("")}`);
    if (body.childElementCount !== agreement.length) body.innerHTML = matrixRows(agreement.length);
    agreement.forEach((row, i) => {
      setText(body.rows[i].cells[0], nameOf(i));
      row.forEach((share, j) => drawCell(body.rows[i].cells[j + 1].firstElementChild, [i, j], share, low));
    });
  }

  function matrixRows(n) {
    const cell = (i, j) =>
      `<td><button type="button" class="cell" data-row="${i}" data-column="${j}" data-key="${i},${j}" ${KEYS}></button></td>`;
    const row = (i) => Array.from({ length: n }, (_, j) => cell(i, j)).join("");
    return Array.from({ length: n }, (_, i) => `<tr><th scope="row"></th>${row(i)}</tr>`).join("");
  }

  function drawCell(cell, [i, j], share, low) {
    const { back, text } = cividis(low < 1 ? (share - low) / (1 - low) : 1);
    setText(cell, (share * 100).toFixed(1));
    Object.assign(cell.style, { background: back, color: text });
    cell.setAttribute("aria-label", `${part.drawn[i]?.label} and ${part.drawn[j]?.label}: ${formatPercent(share, 4)}`);
    cell.setAttribute("aria-pressed", String(view.state?.pair) === `${i},${j}`);
  }

  function drawPair() {
    const [first, second] = view.state?.pair ?? [];
    const [a, b] = [part.drawn[first], part.drawn[second]];
    pairBox.hidden = !a || !b;
    if (pairBox.hidden) return;
    const names = `${a.label} and ${b.label}`;
    const { svg, counts } = compareCrops(masks[first], masks[second], part.crop, `difference of ${names}`);
    const share = part.agreement[first]?.[second];
    const shared = Number.isFinite(share) ? `share ${formatPercent(share, 4)} of the kept weights` : "are compared";
    const sentence =
      `${names} ${shared}: of those shown, ${formatCount(counts.both)} are kept by both, ` +
      `${formatCount(counts.in)} only by ${a.label}, ${formatCount(counts.out)} only by ${b.label}.`;
    setHtml(pairBox, `${svg}<figcaption><p class="sentence">${escapeText(sentence)}</p></figcaption>`);
  }

  return { update, refresh, drawn: () => part?.drawn ?? [], dots: () => part?.dots };
}

// ------------------------------------------------------------------------------------------- panel 4: table of tensors

const COLUMNS = [
  { title: "tensor", value: (row) => row.name },
  { title: "shape", value: (row) => row.n, text: (row) => row.shape.join(" x ") },
  { title: "weights n", value: (row) => row.n, text: (row) => formatCount(row.n) },
  { title: "tau", value: (row) => row.threshold ?? Infinity },
  { title: "near tau (%)", value: (row) => row.near, text: (row) => formatNumber(row.near * 100, 3) },
  { title: "M", value: (row) => row.samples, text: (row) => formatCount(row.samples) },
  { title: "T", value: (row) => row.power },
  { title: "ir", value: (row) => row.ir ?? Infinity },
  { title: "swapped (%)", value: (row) => row.swapped, text: (row) => formatNumber(row.swapped * 100, 3) },
];
const LONG = 200; // from so many rows on those out of sight are not laid out
const NEEDING_RESULTS = 3; // the columns from this one on have nothing to say of a tensor with a problem

/** A table that sorts by any column and whose names choose the tensor. Rows stay in place while pieces arrive. */
function createTable(view, panel) {
  const heads = COLUMNS.map(({ title }) => `<th scope="col"><button type="button" ${KEYS}>${title}</button></th>`);
  panel.body.innerHTML = `<div class="rp-scroll rp-table" tabindex="0" ${KEYS} role="region" aria-label="all tensors">
    <table><thead><tr>${heads.join("")}</tr></thead><tbody></tbody></table></div>`;
  const [headRow, body] = [panel.body.querySelector("thead tr"), panel.body.querySelector("tbody")];
  const rowsByName = new Map();
  let rows = [];
  let sorted = { column: null, sign: 1 };

  headRow.addEventListener("click", ({ target }) => {
    const column = target.closest("th")?.cellIndex;
    if (column === undefined) return;
    sorted = { column, sign: sorted.column === column ? -sorted.sign : 1 };
    [...headRow.cells].forEach((head, i) => {
      if (i !== column) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", sorted.sign > 0 ? "ascending" : "descending");
    });
    order();
  });
  body.addEventListener("click", ({ target }) => {
    if (target.closest("button")) view.propose({ tensor: target.closest("tr").dataset.tensor });
    markCurrent();
  });

  function update(part) {
    rows = part.rows;
    panel.title(part);
    panel.badge.textContent = part.done < part.total ? `${part.done} of ${part.total} tensors` : `${part.total} tensors`;
    body.closest(".rp-table").classList.toggle("rp-long", rows.length >= LONG);
    const names = new Set(rows.map(({ name }) => name));
    for (const [name, element] of rowsByName) {
      if (names.has(name)) continue;
      element.remove();
      rowsByName.delete(name);
    }
    for (const row of rows) {
      if (!rowsByName.has(row.name)) rowsByName.set(row.name, document.createElement("tr"));
      const element = rowsByName.get(row.name);
      element.dataset.tensor = row.name;
      element.className = row.prunable ? "" : "rp-light";
      setHtml(element, rowHtml(row));
    }
    order();
    markCurrent();
  }

  function order() {
    const { column, sign } = sorted;
    const compare = (a, b) => (a > b) - (a < b);
    const value = column === null ? null : COLUMNS[column].value;
    const inOrder = value ? [...rows].sort((a, b) => sign * compare(value(a), value(b))) : rows;
    keepFocus(view.root, () => {
      let place = body.firstElementChild;
      for (const { name } of inOrder) {
        const element = rowsByName.get(name);
        if (element === place) place = place.nextElementSibling;
        else body.insertBefore(element, place);
      }
    });
  }

  function markCurrent() {
    const current = rowsByName.get(view.state?.tensor);
    const marked = body.querySelector("[aria-current]");
    if (marked !== current) marked?.removeAttribute("aria-current");
    current?.setAttribute("aria-current", "true");
  }

  return { update, markCurrent };
}

function rowHtml(row) {
  const cells = COLUMNS.slice(1, row.problem ? NEEDING_RESULTS : undefined).map(
    ({ value, text }) => `<td>${text ? text(row) : formatNumber(value(row))}</td>`,
  );
  if (row.problem) {
    cells.push(`<td class="rp-problem" colspan="${COLUMNS.length - NEEDING_RESULTS}">${escapeText(row.problem)}</td>`);
  }
  const name = escapeText(row.name);
  const light = row.prunable ? "" : " <span>(not pruned by default)</span>";
  return `<td><button type="button" data-key="row-${name}" ${KEYS}>${name}</button>${light}</td>${cells.join("")}`;
}

// ---------------------------------------------------------------------------------------------------------------- tour

const TOUR = { seconds: 8, pause: 200, turns: 2, stops: 60 }; // two ways there and back, five steps a second
const TOUCHES = ["pointerdown", "keydown", "wheel", "touchstart"];

/**
 * The sparsity slider sways by itself, as if someone moved it, until someone does; returns what ends it. Whoever has asked
 * for less motion gets none.
 */
function startTour(root) {
  const slider = root.querySelector("input[type=range][data-field=sparsity]");
  if (!slider || matchMedia("(prefers-reduced-motion: reduce)").matches) return () => {};
  const [start, steps] = [Number(slider.value), (TOUR.seconds * 1000) / TOUR.pause];
  const way = Math.min(TOUR.stops, start);
  let step = 0;
  const timer = setInterval(() => {
    step += 1;
    slider.value = Math.round(start - (way * (1 - Math.cos((2 * Math.PI * TOUR.turns * step) / steps))) / 2);
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    if (step >= steps) end();
  }, TOUR.pause);
  const end = () => {
    clearInterval(timer);
    for (const touch of TOUCHES) document.removeEventListener(touch, end, true);
  };
  for (const touch of TOUCHES) document.addEventListener(touch, end, { capture: true, passive: true });
  return end;
}

// --------------------------------------------------------------------------------------------------------------- mount

const WAITING = "Waiting for Python...";
const PANELS = { microscope: "Threshold microscope", curve: "Keep curve", candidates: "Candidates" };
Object.assign(PANELS, { randomness: "Introduced randomness", table: "All tensors" });
const DRAWINGS = ["microscope", "curve", "randomness"];
/** One panel's frame: a titled section with a badge, a body and its sentence. */
function createPanel(name, id) {
  const element = elementOf(`<section data-panel="${name}" aria-labelledby="${id}-${name}">
    <div class="rp-head"><h3 id="${id}-${name}">${PANELS[name]}</h3><span class="rp-badge"></span></div>
    <div class="rp-body"></div><p class="sentence">${WAITING}</p></section>`);
  const [body, sentence] = [element.querySelector(".rp-body"), element.lastElementChild];
  const badge = element.querySelector(".rp-badge");
  const panel = { element, body, badge };
  panel.title = (part) => {
    setText(element.querySelector("h3"), part.title ?? PANELS[name]);
    setText(badge, part.badge ?? "");
    setText(sentence, part.sentence ?? "");
    panel.svg?.setAttribute("aria-label", part.sentence ?? "");
  };
  if (!DRAWINGS.includes(name)) return panel;
  const legend = name === "microscope" ? legendHtml([...KINDS].reverse().map((kind) => [kind, kind])) : "";
  body.innerHTML = `${legend}<div class="rp-drawing"><svg role="img" aria-label="${PANELS[name]}"><g></g></svg></div>`;
  panel.holder = body.querySelector(".rp-drawing");
  panel.svg = panel.holder.firstElementChild;
  panel.width = 600; // until the page has been laid out
  panel.draw = (html, height) => {
    panel.svg.setAttribute("width", panel.width);
    panel.svg.setAttribute("height", height);
    setHtml(panel.svg.firstElementChild, html);
  };
  return panel;
}

/** Whether what lies behind an element is dark: the first background on the way up, through shadow roots. */
function isOnDark(element) {
  for (let at = element; at; at = at.assignedSlot ?? at.parentElement ?? at.getRootNode().host) {
    const colour = getComputedStyle(at).backgroundColor;
    const [r, g, b, alpha = 1] = (colour.match(/[\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
    const unit = colour.startsWith("color(") ? 255 : 1;
    if (alpha > 0.5) return luminance([r * unit, g * unit, b * unit]) < 0.18;
  }
  const scheme = getComputedStyle(document.documentElement).colorScheme;
  return scheme.includes("dark") && (!scheme.includes("light") || matchMedia("(prefers-color-scheme: dark)").matches);
}

/** The page's skeleton within `root`. */
function createPlaces(root, id, options) {
  root.replaceChildren();
  root.classList.add("rp-root");
  root.classList.toggle("rp-frozen", Boolean(options.frozen));
  const style = root.appendChild(document.createElement("style"));
  style.textContent = STYLE + STYLE_OF_LISTS;
  root.append(
    elementOf(`<p class="rp-alert" role="alert" hidden></p>`),
    elementOf(`<div class="rp-notices" role="status"></div>`),
    elementOf(`<div class="rp-frame"><div class="rp-side"><p class="rp-notice rp-note" hidden></p>
      <h2></h2><div class="rp-source rp-fields"></div><div class="rp-groups rp-controls"></div>
      <div class="rp-code" hidden><button type="button" ${KEYS}>copy as code</button>
        <details><summary ${KEYS}>this view as Python code</summary><pre></pre></details></div></div>
      <div class="rp-panels"></div></div>`),
  );
  const find = (selector) => root.querySelector(selector);
  const panels = {};
  for (const name of Object.keys(PANELS)) {
    panels[name] = createPanel(name, id);
    find(name === "table" ? ".rp-frame" : ".rp-panels").append(panels[name].element);
    panels[name].element.hidden = !(options.panels?.includes(name) ?? true);
  }
  const sweepSlot = elementOf(`<div class="rp-sweep-control"></div>`);
  panels.randomness.body.before(sweepSlot); // outside: what is dimmed looks as if it could not be used
  find(".rp-note").hidden = !options.note;
  setText(find(".rp-note"), options.note ?? "");
  return {
    panels,
    sweepSlot,
    side: find(".rp-side"),
    alert: find(".rp-alert"),
    notices: find(".rp-notices"),
    code: find(".rp-code"),
  };
}

/** Lets tau and reach be dragged. While one is, the window stands still: if it went along, the rule would run away. */
function createRuleDrag(view, panel, redraw) {
  const { svg } = panel;
  let drag = null; // {rule, low, high, left, magnitude, held}

  svg.addEventListener("pointerdown", (event) => {
    const rule = event.target.closest("[data-rule]")?.dataset.rule;
    if (!rule || view.frozen || !view.state) return;
    event.preventDefault();
    svg.setPointerCapture(event.pointerId);
    const { low, high } = view.shown.microscope;
    drag = { rule, low, high, left: svg.getBoundingClientRect().left, magnitude: null, held: true };
  });
  svg.addEventListener("pointermove", (event) => {
    if (!drag?.held) return;
    const x = linearScale(drag.low, drag.high, LEFT, panel.width - RIGHT);
    const magnitude = x.invert(event.clientX - drag.left);
    drag.magnitude = Math.min(Math.max(magnitude, drag.low), drag.high);
    view.propose({}, { rule: drag.rule, magnitude: drag.magnitude });
    redraw();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    svg.addEventListener(end, () => {
      if (drag) drag.held = false;
      settle();
    });
  }

  /** The rule stays where it was let go until the last answer is there. */
  function settle() {
    if (!drag || drag.held || !view.isIdle()) return;
    drag = null;
    redraw();
  }

  return { settle, current: () => drag };
}

/**
 * Draws the live panels into `root` and calls `ask` with what the user does. See the module's head.
 *
 * options: frozen (a page without Python), note (shown above the controls), code (false: no code to copy), panels and
 * controls (names of those to show; all), tour (the sparsity moves by itself at first), busy (what to say when no answer comes).
 * Returns {update(part), lookAgain(ms), gone(text), destroy()}.
 */
function mount(root, ask, options = {}) {
  const id = `rp${Math.random().toString(36).slice(2, 9)}`;
  const places = createPlaces(root, id, options);
  const { panels } = places;
  const late = {}; // kind -> the newest part
  let quick = null;
  let showsDark = null;
  let looking = 0; // the timer of the next look
  let endTour = null;

  // What the parts of the page share. `state` is what the user wants, ahead of Python while a question is in flight.
  const view = { root, id, places, frozen: Boolean(options.frozen), state: null, derived: null, shown: {} };
  const { controls: offered, panels: shown } = options;
  view.offers = (field) => (offered?.includes(field) ?? true) && (field !== "candidates" || (shown?.includes(field) ?? true));
  const askAloud = (question) => {
    if (!question.more) root.toggleAttribute("data-waits", !view.frozen); // tests wait for its end
    ask(question);
  };
  const conversation = createConversation(askAloud, view.frozen, options.busy ?? BUSY, (text) => {
    places.alert.hidden = !text;
    setText(places.alert, text);
  });
  view.isIdle = conversation.isIdle;
  view.propose = (change, drag) => {
    view.state = { ...view.state, ...change };
    if (!drag) controls.refresh();
    conversation.ask({ state: view.state, ...(drag && { drag }) });
  };
  const controls = createControls(view);
  const candidates = createCandidates(view, panels.candidates);
  const table = createTable(view, panels.table);
  const rules = createRuleDrag(view, panels.microscope, () => {
    drawMagnitudes();
  });

  // A slow part is worked out for a key; it is fresh while the quick part names the same one.
  /** Whether a late part belongs to what panels 1 and 2 show: a quick part says the keys of those that do. */
  const isFresh = (kind) => kind in late && late[kind].key === quick?.keys?.[kind];

  /** Panels 1 and 2, from what was last good; both over the same magnitudes. */
  function drawMagnitudes() {
    const { microscope: scope, curve } = view.shown;
    const drag = rules.current();
    const held = (rule, magnitude) => (drag?.rule === rule ? (drag.magnitude ?? magnitude) : magnitude);
    const width = panels.microscope.width;
    if (scope) {
      const marks = { tau: held("threshold", scope.tau), reach: held("reach", scope.reach_at) };
      const html = drawMicroscope(scope, drag ?? scope, marks, width, id);
      panels.microscope.draw(html, SCOPE.top + SCOPE.plot + SCOPE.axis + SCOPE.inset + SCOPE.insetAxis);
    }
    if (curve) {
      const dots = (isFresh("candidates") && candidates.dots()) || { magnitudes: [], kept: [] };
      const html = drawCurve(curve, drag ?? curve, held("threshold", curve.tau), dots, panels.curve.width);
      panels.curve.draw(html, CURVE.top + CURVE.plot + CURVE.axis);
    }
  }

  function drawPoint() {
    if (!late.sweep) return;
    const drawn = isFresh("candidates") ? candidates.drawn().filter(({ slot }) => slot > 0) : [];
    const html = drawRandomness(late.sweep, view.shown.point, drawn, panels.randomness.width);
    panels.randomness.draw(html, RANDOMNESS.top + RANDOMNESS.plot + RANDOMNESS.axis);
  }

  function drawAll() {
    drawMagnitudes();
    drawPoint();
    for (const [kind, name] of [["sweep", "randomness"], ["candidates", "candidates"], ["table", "table"]]) {
      panels[name].element.classList.toggle("rp-late", !isFresh(kind) && kind in late);
    }
  }

  function showQuick(part) {
    quick = part;
    conversation.heard(part);
    if (!view.state || !conversation.isAhead()) {
      view.state = part.state;
      view.derived = part.derived ?? view.derived;
      controls.refresh();
    }
    for (const name of ["microscope", "curve"]) {
      panels[name].element.classList.toggle("stale", !part[name]);
      if (part[name]) panels[name].title((view.shown[name] = part[name]));
    }
    panels.randomness.element.classList.toggle("stale", !part.point);
    if (part.point) view.shown.point = part.point;
    setBanners(part.curve?.banners ?? []);
    setHtml(places.notices, (part.notices ?? []).map(noticeHtml).join(""));
    showCode(part.code);
    rules.settle();
    candidates.refresh();
    table.markCurrent();
    drawAll();
    describePoint();
    if (part.live) lookAgain(LOOK_AGAIN);
    if (options.tour && part.derived) endTour ??= startTour(root);
  }

  /** Asks in a while whether anything has come; while a run goes on, again and again. Nobody looks at a hidden page. */
  function lookAgain(ms) {
    clearTimeout(looking);
    looking = setTimeout(() => {
      if (document.hidden) return lookAgain(ms);
      conversation.more();
      if (quick?.live) lookAgain(LOOK_AGAIN);
    }, ms);
  }

  function showLate(part) {
    late[part.kind] = part;
    if (part.kind === "sweep") panels.randomness.title(part);
    if (part.kind === "candidates") candidates.update(part);
    if (part.kind === "table") table.update(part);
    describePoint();
    drawAll();
  }

  /** Panel 4 says two things: how the line runs, and where we stand on it. */
  function describePoint() {
    const sentences = [view.shown.point?.sentence, late.sweep?.sentence].filter(Boolean);
    panels.randomness.title({ ...late.sweep, sentence: sentences.join(" ") || WAITING });
  }

  function setBanners(banners) {
    if (!panels.curve.banners) panels.curve.banners = panels.curve.element.appendChild(elementOf(`<div></div>`));
    setHtml(panels.curve.banners, banners.map((text) => `<p class="banner">${escapeText(text)}</p>`).join(""));
  }

  function showCode(code) {
    places.code.hidden = !code || options.code === false;
    setText(places.code.querySelector("pre"), code ?? "");
  }

  function update(part) {
    if (!part) return;
    const dark = isOnDark(root); // read before anything is written: it costs no second layout
    if (dark !== showsDark) root.classList.toggle("rp-dark", (showsDark = dark));
    if (part.kind === "controls") controls.build(part);
    if (part.kind === "source") controls.buildSource(part);
    if (part.kind === "quick") showQuick(part);
    if (["sweep", "candidates", "table"].includes(part.kind)) showLate(part);
    stamp(part);
  }

  /** Says in the DOM what has been drawn: tests and latency measurements wait for it. */
  function stamp({ kind, seq, answers, done, total }) {
    root.toggleAttribute("data-waits", !conversation.isIdle());
    if (kind === "quick") Object.assign(root.dataset, { seq: seq ?? "", answers: answers ?? "" });
    else if (seq !== undefined) root.dataset[`${kind}Seq`] = seq;
    if (done !== undefined) Object.assign(root.dataset, { [`${kind}Done`]: done, [`${kind}Total`]: total });
  }

  const observer = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) {
      const panel = DRAWINGS.map((name) => panels[name]).find(({ holder }) => holder === target);
      if (contentRect.width > 0) panel.width = Math.max(Math.floor(contentRect.width), LEAST_WIDTH);
    }
    drawAll();
  });
  for (const name of DRAWINGS) observer.observe(panels[name].holder);
  places.code.querySelector("button").addEventListener("click", ({ target }) => copyCode(places.code, target));

  const greet = () => quick || conversation.hello();
  const hellos = [setTimeout(conversation.hello, 0), setTimeout(greet, HELLO_AGAIN)];
  return {
    update,
    lookAgain,
    gone(text = GONE) {
      places.alert.hidden = false;
      setText(places.alert, text);
    },
    destroy() {
      hellos.forEach(clearTimeout);
      clearTimeout(looking);
      endTour?.();
      conversation.end();
      observer.disconnect();
      root.replaceChildren();
      root.classList.remove("rp-root", "rp-dark", "rp-frozen");
    },
  };
}

function noticeHtml({ kind, text }) {
  const known = ["error", "warning", "info"].includes(kind) ? kind : "info";
  return `<div class="rp-notice rp-${known}">${escapeText(text)}</div>`;
}

/** Copies the code; where a page may not, selects it for the user to copy. */
async function copyCode(box, button) {
  const code = box.querySelector("pre");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "copied";
  } catch {
    box.querySelector("details").open = true;
    getSelection().selectAllChildren(code);
    button.textContent = "selected: press Ctrl+C";
  }
  setTimeout(() => (button.textContent = "copy as code"), 2000);
}
