// The live panel of a run, an atomizer or a conductor.
//
// Whatever comes from Python is text and is put into the page as text: nothing here parses HTML.
// The page sets no trait. It sends small messages: {hello} when it has nothing yet, {tabs} that
// are open, {views} there are, {column} of the results, and {do} for a button.

const KEPT = 500;
const PATIENCE = 10000; // milliseconds
const KINDS_SHOWN = 10; // of failures
const WORKERS_SHOWN = 100;
const TABS = {
  run: ["events", "failures", "output", "workers", "results"],
  atomizer: ["runs", "events", "atoms", "conductors"],
  conductor: ["workers"],
};
const GOING = ["running", "paused"];
const SVG = "http://www.w3.org/2000/svg";

// -- text ------------------------------------------------------------------------------------

const whole = new Intl.NumberFormat("en-US");
const count = (n) => (n == null ? "?" : whole.format(n));

const digits = (x) => String(Number(x.toPrecision(3)));

function rate(x) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (x >= size) return `${digits(x / size)} ${unit}/s`;
  return `${digits(x)} /s`;
}

const two = (n) => String(n).padStart(2, "0");

function seconds(s) {
  if (s < 59.95) return `${s.toFixed(1)} s`;
  const n = Math.round(s);
  if (n < 3600) return `${Math.floor(n / 60)} min ${two(n % 60)} s`;
  if (n < 172800) return `${Math.floor(n / 3600)} h ${two(Math.floor((n % 3600) / 60))} min`;
  return `${Math.floor(n / 86400)} d ${Math.floor((n % 86400) / 3600)} h`;
}

function bytes(x) {
  for (const [size, unit] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"]])
    if (x >= size) return `${digits(x / size)} ${unit}`;
  return `${digits(x / 1024)} KiB`;
}

// Rounded down: nothing is at 100 % before it is all there.
const percent = (part, of) =>
  part === of ? "100 %" : `${(Math.floor((1000 * part) / of) / 10).toFixed(1)} %`;

const plural = (n, what) => `${count(n)} ${what}${n === 1 ? "" : "s"}`;

function clock(ms) {
  const t = new Date(ms);
  const milli = String(t.getMilliseconds()).padStart(3, "0");
  return `${two(t.getHours())}:${two(t.getMinutes())}:${two(t.getSeconds())}.${milli}`;
}

// -- elements --------------------------------------------------------------------------------

function dress(element, options, children) {
  for (const [name, value] of Object.entries(options || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value != null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

const h = (tag, options, ...children) => dress(document.createElement(tag), options, children);
const svg = (tag, options, ...children) =>
  dress(document.createElementNS(SVG, tag), options, children);

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function show(element, shown) {
  element.hidden = !shown;
}

const button = (text, act, options = {}) =>
  h("button", { type: "button", onclick: act, ...options }, text);

// Replaces the children only where what they are made of has changed: selections survive.
function fill(element, data, make) {
  const key = JSON.stringify(data);
  if (element.dataset.made === key) return;
  element.dataset.made = key;
  element.replaceChildren(...make());
}

// -- the head of a run -----------------------------------------------------------------------

function runHead(send) {
  const dot = h("span", { class: "dot", "aria-hidden": "true" });
  const name = h("span", { class: "name" });
  const label = h("span", { class: "mute label", role: "status", "aria-live": "polite" });
  const id = h("span", { class: "faint mono id" });
  const elapsed = h("span", { class: "mute elapsed", title: "elapsed" });
  const actions = h("span", { class: "actions" });
  const bar = h("div", { class: "bar", role: "progressbar", "aria-valuemin": "0" });
  const parts = Object.fromEntries(
    ["done", "failed", "running", "cancelled"].map((part) => [part, h("i", { class: part })]),
  );
  bar.append(...Object.values(parts));
  const stats = {};
  const stat = (key) => {
    const value = h("b");
    const under = h("span");
    const box = h("div", { class: `stat ${key}` }, value, under);
    stats[key] = { box, value, under };
    return box;
  };
  const spark = svg("svg", { class: "spark", viewBox: "0 0 150 34", role: "img" });
  const error = h("div", { class: "problem", role: "alert", hidden: true });
  const top = h("div", { class: "head" }, dot, name, label, id, h("span", { class: "grow" }),
    elapsed, actions);
  const line = h("div", { class: "stats" }, stat("count"), stat("share"), stat("rate"),
    stat("bad"), h("span", { class: "grow" }), spark);
  let asking = false;
  let since = 0;
  let state = {};

  function act(what) {
    asking = false;
    send({ do: what });
    drawActions();
  }

  function ask() {
    asking = true;
    drawActions();
    actions.querySelector(".keep").focus();
  }

  function drawActions() {
    const can = state.can || [];
    if (!can.includes("cancel")) asking = false;
    const held = actions.contains(document.activeElement) && document.activeElement.textContent;
    fill(actions, [can, asking], () => {
      if (asking) {
        return [
          h("span", { class: "mute" }, "Cancel the run?"),
          button("Yes, cancel", () => act("cancel"), { class: "danger" }),
          button("Keep running", () => { asking = false; drawActions(); }, { class: "keep" }),
        ];
      }
      // Cancel is last and stays where it is when something has failed; a second click on it
      // by mistake meets "Keep running".
      const buttons = [];
      if (can.includes("retry")) buttons.push(button("Retry failed", () => act("retry")));
      if (can.includes("pause")) buttons.push(button("Pause", () => act("pause")));
      if (can.includes("resume")) buttons.push(button("Resume", () => act("resume")));
      if (can.includes("cancel")) buttons.push(button("Cancel", ask));
      return buttons;
    });
    if (!held || actions.contains(document.activeElement)) return;
    // Whoever uses a keyboard stays at the button pressed, or at what took its place.
    const buttons = [...actions.querySelectorAll("button")];
    const wanted = [held, { Pause: "Resume", Resume: "Pause" }[held]];
    const next = buttons.find((it) => wanted.includes(it.textContent)) || buttons.pop();
    if (next) next.focus();
  }
  actions.addEventListener("keydown", (event) => {
    if (asking && event.key === "Escape") { asking = false; drawActions(); }
  });

  function tick() {
    const going = GOING.includes(state.state) && !state.lost;
    const more = going ? (performance.now() - since) / 1000 : 0;
    say(elapsed, state.elapsed == null ? "" : seconds(state.elapsed + more));
  }

  function update(now, renewed) {
    state = now;
    if (renewed) since = performance.now();
    const { done = 0, failed = 0, running = 0, cancelled = 0, total } = state;
    const ended = done + failed;
    const lost = state.lost && GOING.includes(state.state);
    const going = GOING.includes(state.state) && !lost;
    const mood = lost ? "lost" : failed && !going ? "bad" : state.state;
    dot.className = `dot ${mood}`;
    say(name, state.atom || "");
    name.title = state.atom_id || "";
    say(label, lost ? `was ${state.label}; ${state.lost}` : state.label || "");
    say(id, state.id || "");
    id.title = state.store ? `kept in ${state.store}` : "not kept in a store";
    const of = total || ended + running + cancelled || 1;
    for (const [part, n] of Object.entries({ done, failed, running, cancelled })) {
      parts[part].style.width = total == null ? "" : `${(100 * n) / of}%`;
    }
    bar.classList.toggle("unknown", total == null && going);
    const text = total == null
      ? `${plural(ended, "electron")} ended, of an unknown number`
      : `${count(ended)} of ${plural(total, "electron")} ended, ${count(failed)} failed`;
    bar.setAttribute("aria-label", `progress of ${state.atom}`);
    bar.setAttribute("aria-valuetext", text);
    bar.title = text;
    if (total != null) {
      bar.setAttribute("aria-valuemax", total);
      bar.setAttribute("aria-valuenow", ended);
    }
    say(stats.count.value, count(done));
    stats.count.value.style.minWidth = total == null ? "" : `${count(total).length}ch`;
    say(stats.count.under, total == null ? "electrons so far" : `of ${plural(total, "electron")}`);
    show(stats.share.box, total != null);
    if (total != null) say(stats.share.value, percent(ended, total));
    say(stats.share.under, going
      ? state.state === "paused" ? (running ? `${count(running)} still running` : "paused")
        : state.eta == null ? "time left unknown" : `${seconds(state.eta)} left`
      : lost ? "when last seen" : "ended");
    say(stats.rate.value, rate(state.rate || 0));
    const crew = state.workers;
    say(stats.rate.under, crew
      ? `${plural(crew.count, "worker")}${going ? `, ${Math.round(100 * crew.busy)} % busy` : ""}`
      : "electrons per second");
    show(stats.bad.box, failed > 0 || state.retried > 0);
    say(stats.bad.value, count(failed));
    stats.bad.box.classList.toggle("none", failed === 0);
    say(stats.bad.under, `failed${state.retried ? `, ${count(state.retried)} retried` : ""}`);
    drawSpark(spark, state.spark || []);
    show(error, Boolean(state.error));
    say(error, state.error || "");
    drawActions();
    tick();
  }
  return { elements: [top, bar, line, error], update, tick };
}

function drawSpark(spark, rates) {
  fill(spark, rates, () => {
    const points = rates.length ? [[0, rates[0][1]], ...rates] : [];
    const last = points.length ? points[points.length - 1] : [1, 0];
    const highest = Math.max(...points.map(([, r]) => r), 1e-12);
    const at = ([t, r]) => `${((150 * t) / last[0]).toFixed(1)},${(31 - (28 * r) / highest).toFixed(1)}`;
    const label = `rate over the run: at most ${rate(points.length ? highest : 0)}`;
    spark.setAttribute("aria-label", label);
    return [
      svg("title", {}, label),
      svg("line", { x1: 0, x2: 150, y1: 33, y2: 33 }),
      ...(points.length > 1 ? [svg("polyline", { points: points.map(at).join(" ") })] : []),
    ];
  });
}

// -- the tabs --------------------------------------------------------------------------------

const LEVELS = [["", "All levels"], ["info", "Info +"], ["warning", "Warning +"],
  ["error", "Error"]];

// The newest of what has happened, with filters: `what` is the noun for one row.
function logTab(rows, what) {
  const filter = h("input", { type: "search", placeholder: `Filter ${what}s`,
    "aria-label": `Show only ${what}s with this text`, oninput: () => draw() });
  const level = h("select", { "aria-label": `Show only ${what}s of this level and above`,
    onchange: () => draw() }, ...LEVELS.map(([value, text]) => h("option", { value }, text)));
  const shown = h("span", { class: "faint small" });
  const hold = button("Hold", () => (held ? release() : holdOn()),
    { title: "Hold the list still, or follow what is new" });
  const list = h("div", { class: "events", role: "log", "aria-live": "off", tabindex: "0",
    "aria-label": `${what}s, the newest first` });
  const drawn = new Map();
  let held = null;
  let total = 0;

  function holdOn() { held = rows.list.slice(); draw(); }
  function release() { held = null; list.scrollTop = 0; draw(); }
  // Whoever scrolls down is reading: what is new must not push that away.
  list.addEventListener("scroll", () => { if (!held && list.scrollTop > 8) holdOn(); });

  function matches([, , its, message, atom, electron]) {
    const ranks = ["debug", "info", "warning", "error", "critical"];
    if (level.value && ranks.indexOf(its) < ranks.indexOf(level.value)) return false;
    const text = filter.value.toLowerCase();
    return !text || `${message} ${atom} ${electron}`.toLowerCase().includes(text);
  }

  function make([, ms, its, message, atom, electron]) {
    const kind = { critical: "err", error: "err", warning: "warn" }[its] || "mute";
    return h("div", { class: "ev" },
      h("span", { class: "mono faint", title: new Date(ms).toISOString() }, clock(ms)),
      h("span", { class: `lv ${kind}` }, its),
      h("span", { class: "what" }, message),
      h("span", { class: "mono faint who" }, `${atom} ${electron}`.trim()));
  }

  function draw() {
    const from = held || rows.list;
    const wanted = from.filter(matches);
    const numbers = new Set(wanted.map((row) => row[0]));
    for (const [number, element] of drawn) {
      if (!numbers.has(number)) { element.remove(); drawn.delete(number); }
    }
    let before = list.firstChild;
    for (const row of wanted) {
      let element = drawn.get(row[0]);
      if (!element) {
        element = make(row);
        drawn.set(row[0], element);
      }
      if (element === before) before = before.nextSibling;
      else list.insertBefore(element, before);
    }
    const filtered = wanted.length < from.length ? `${count(wanted.length)} of ` : "";
    say(shown, from.length < total || filtered
      ? `${filtered}newest ${count(from.length)} of ${count(total)}` : plural(total, what));
    const latest = held ? Math.max(-1, ...held.map((row) => row[0])) : 0;
    const fresh = held ? rows.list.filter((row) => row[0] > latest).length : 0;
    say(hold, held ? (fresh ? `Follow, ${count(fresh)} new` : "Follow") : "Hold");
    hold.setAttribute("aria-pressed", String(Boolean(held)));
  }

  return {
    element: h("div", {}, h("div", { class: "tools" }, filter, level,
      h("span", { class: "grow" }), shown, hold), list),
    draw(all) { total = all; draw(); },
  };
}

function eventsTab(rows) {
  const tab = logTab(rows, "event");
  return {
    ...tab,
    update: ({ news }) => tab.draw((news && news.total) || 0),
    badge: ({ news }) => [news && news.total, false],
  };
}

// What atoms print: stdout and stderr stand where events have their level.
function outputTab() {
  const rows = { list: [] };
  const tab = logTab(rows, "line");
  return {
    ...tab,
    update({ output }) {
      rows.list = (output && output.rows) || [];
      tab.draw((output && output.total) || 0);
    },
    badge: ({ state }) => [state.printed, false],
  };
}

const looking = ({ lost }) =>
  lost ? "Nothing is known of this: the kernel had not been asked for it before." : "Looking ...";

function failuresTab(send) {
  const element = h("div", { class: "failures" });
  const more = h("div", { class: "mute small", hidden: true },
    `The ${KINDS_SHOWN} most frequent kinds; run.failures has all.`);
  const drawn = new Map();
  element.append(more);

  function make(key) {
    const kind = h("span", { class: "chip" });
    const type = h("b");
    const message = h("span", { class: "what" });
    const number = h("span", { class: "mute nowrap" });
    const body = h("div");
    let group = {};
    const retry = button("Retry", () => send({ do: "retry", kind: group.kind, type: group.type }),
      { title: "Execute these electrons again" });
    // Beside the summary: a button within another one is none for those who use a screen reader.
    const box = h("div", { class: "failure" }, h("details", {}, h("summary", {}, kind, type,
      message, h("span", { class: "grow" }), number), body), retry);
    function update(now, can) {
      group = now;
      say(kind, group.kind);
      kind.className = `chip ${group.kind === "cancelled" ? "cancelled" : ""}`;
      say(type, group.type);
      say(message, group.message);
      say(number, plural(group.count, "electron"));
      show(retry, can);
      retry.setAttribute("aria-label", `Retry ${group.kind} ${group.type}`.trim());
      box.classList.toggle("can-retry", can);
      fill(body, [group.traceback, group.hint, group.examples], () => [
        ...(group.traceback ? [h("pre", { tabindex: "0" }, group.traceback)] : []),
        ...group.examples.flatMap(example),
        ...(group.hint ? [h("div", { class: "mute small" }, group.hint)] : []),
      ]);
    }
    const made = { box, update };
    drawn.set(key, made);
    return made;
  }

  function example({ inputs, attempt, worker, replay, printed }) {
    const line = h("code", {}, replay);
    const copy = button("Copy", async () => {
      try {
        await navigator.clipboard.writeText(replay);
        say(copy, "Copied");
      } catch {
        getSelection().selectAllChildren(line); // a page without TLS may not write there
        say(copy, "Selected");
      }
    }, { class: "slight", "aria-label": `Copy ${replay}` });
    return [h("div", { class: "example" },
      h("div", { class: "mono mute" }, inputs, h("span", { class: "faint" },
        `  ·  attempt ${attempt}${worker ? ` on ${worker}` : ""}`)),
      ...(printed ? [h("pre", { tabindex: "0", title: "what it printed last" }, printed)] : []),
      h("div", { class: "mono faint" }, line, " ", copy))];
  }

  return {
    element,
    update({ state, failures }) {
      const groups = failures || [];
      const keys = groups.map(({ kind, type }) => JSON.stringify([kind, type]));
      for (const [key, { box }] of drawn) {
        if (!keys.includes(key)) { box.remove(); drawn.delete(key); }
      }
      const none = element.querySelector(".none");
      if (none) none.remove();
      if (!groups.length) {
        const waits = state.failed + state.cancelled > 0;
        element.prepend(h("div", { class: "none mute" }, waits ? looking(state) : "No failures."));
      }
      show(more, groups.length >= KINDS_SHOWN);
      groups.forEach((group, place) => {
        const made = drawn.get(keys[place]) || make(keys[place]);
        if (element.children[place] !== made.box) {
          element.insertBefore(made.box, element.children[place] || null);
        }
        made.update(group, (state.can || []).includes("retry"));
      });
    },
    badge: ({ state }) => [state.failed, state.failed > 0],
  };
}

const isNumber = (it) => !(it instanceof Node) && /^[-+]?([\d,]*\.?\d*(e[-+]?\d+)?|inf)$/.test(it);

function table(head, rows, label) {
  const sides = head.map((_, place) => (rows.every((row) => isNumber(row[place])) ? "num" : null));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", {},
      h("thead", {}, h("tr", {}, ...head.map((text, place) =>
        h("th", { scope: "col", class: sides[place] }, text)))),
      h("tbody", {}, ...rows.map((row) =>
        h("tr", {}, ...row.map((it, place) =>
          h("td", { class: sides[place] }, it instanceof Node ? it : String(it))))))));
}

const meter = (share) => h("span", { class: "meter", title: `${Math.round(100 * share)} %` },
  h("i", { style: `width:${100 * share}%` }));

function workersTab(withElectrons) {
  const element = h("div", {});
  const row = (w) => {
    const electrons = withElectrons ? [count(w.electrons)] : [];
    if (w.gone) return [w.address, "gone", "", ...electrons, "", ""];
    const busy = h("span", {}, meter(w.busy),
      h("span", { class: "share-of" }, `${Math.round(100 * w.busy)} %`));
    const memory = bytes(w.memory) + (w.limit ? ` of ${bytes(w.limit)}` : "");
    return [w.address, w.host, w.threads, ...electrons, busy, memory];
  };
  return {
    element,
    update({ workers }) {
      const head = ["worker", "host", "threads", ...(withElectrons ? ["electrons"] : []), "busy",
        "memory"];
      fill(element, workers, () => (workers || []).length
        ? [table(head, workers.map(row), "workers"),
          ...(workers.length >= WORKERS_SHOWN
            ? [h("div", { class: "mute small" },
              `The first ${WORKERS_SHOWN} workers; the dashboard of Dask has all.`)] : [])]
        : [h("div", { class: "mute" }, "No workers.")]);
    },
    badge: ({ state, workers }) =>
      [state.workers ? state.workers.count : (workers || []).length, false],
  };
}

function resultsTab(send) {
  const choice = h("select", { "aria-label": "Output to draw",
    onchange: () => send({ column: choice.value }) });
  const frame = h("div", {});
  const chart = h("div", { class: "chart" });
  const words = h("div", { class: "faint small" });
  const right = h("div", { class: "drawing" }, choice, chart, words);
  return {
    element: h("div", { class: "results" }, frame, right),
    update({ state, results }) {
      const { columns = [], first = [], last = [], hidden = 0, rows: ended = 0, some } = results || {};
      fill(frame, [columns, first, last, hidden, ended, some, state.lost, state.done], () => {
        if (!columns.length) {
          return [h("div", { class: "mute" }, state.done ? looking(state) : "No results yet.")];
        }
        const gap = ended > first.length + last.length ? [["⋮", ...columns.map(() => "")]] : [];
        const rows = [...first, ...gap, ...last];
        const more = hidden ? `, ${plural(hidden, "further column")}` : "";
        const which = some ? "some of " : "first and last of ";
        return [table(["row", ...columns], rows, "first and last results"),
          h("div", { class: "faint small" },
            `${gap.length ? which : ""}${plural(ended, "row")}${more}`)];
      });
      const { outputs = [], column = "", chart: drawing } = results || {};
      fill(choice, outputs, () => outputs.map((name) => h("option", { value: name }, name)));
      choice.value = column;
      show(right, outputs.length > 0);
      fill(chart, drawing, () => (drawing ? [drawChart(drawing, column)] : []));
      say(words, drawing ? describeChart(drawing) : "nothing that could be drawn");
    },
    badge: () => [null, false],
  };
}

// `caption` says what it is of: all rows, or a sample of them.
function describeChart({ kind, labels, mean, spread, caption }) {
  return kind === "histogram"
    ? `${labels[0]} to ${labels[1]}; mean ${mean}, standard deviation ${spread} of ${caption}`
    : `the most frequent of ${caption}`;
}

function drawChart(drawing, column) {
  const { kind, bars, labels } = drawing;
  const highest = Math.max(...bars);
  const label = `${kind} of ${column}: ${describeChart(drawing)}`;
  if (kind === "counts") {
    return h("div", { class: "counts", role: "img", "aria-label": label },
      ...bars.flatMap((n, place) => [h("span", { class: "what" }, labels[place]),
        meter(n / highest), h("span", { class: "faint small" }, count(n))]));
  }
  const width = 240 / bars.length;
  return svg("svg", { viewBox: "0 0 240 90", class: "histogram", role: "img", "aria-label": label },
    svg("title", {}, label),
    ...bars.map((n, place) => svg("rect", { x: (place * width).toFixed(2), width: (width * 0.9).toFixed(2),
      y: (88 - (84 * n) / highest).toFixed(2), height: ((84 * n) / highest).toFixed(2) })),
    svg("line", { x1: 0, x2: 240, y1: 89, y2: 89 }));
}

function runsTab(send) {
  const element = h("div", { class: "runs" });
  const row = (run) => {
    const of = run.total || run.done + run.failed + run.cancelled + run.running || 1;
    const bar = h("div", { class: "bar" }, ...["done", "failed", "running", "cancelled"].map(
      (part) => h("i", { class: part, style: `width:${(100 * run[part]) / of}%` })));
    const act = (what, text) => button(text, () => send({ do: what, run: run.id }),
      { "aria-label": `${text} ${run.id}` });
    return h("div", { class: "run" },
      h("span", { class: `dot ${run.failed && !GOING.includes(run.state) ? "bad" : run.state}` }),
      h("b", { class: "name" }, run.atom), h("span", { class: "faint mono id" }, run.id), bar,
      h("span", { class: "nowrap count" }, `${count(run.done)} of ${count(run.total)}`),
      h("span", { class: "mute" }, run.label),
      run.state === "running" ? act("pause", "Pause") : null,
      run.state === "paused" ? act("resume", "Resume") : null);
  };
  return {
    element,
    update({ state }) {
      const runs = state.runs || [];
      const more = state.run_count > runs.length
        ? [h("div", { class: "mute small" }, `The newest ${count(runs.length)} of ${count(state.run_count)} runs.`)]
        : [];
      fill(element, [runs, state.run_count], () => runs.length
        ? [...runs.map(row), ...more] : [h("div", { class: "mute" }, "No runs yet.")]);
    },
    badge: ({ state }) => [state.run_count, false],
  };
}

function listTab(name, head, row) {
  const element = h("div", {});
  return {
    element,
    update({ state }) {
      const items = state[name] || [];
      fill(element, items, () => items.length
        ? [table(head, items.map(row), name)] : [h("div", { class: "mute" }, `No ${name}.`)]);
    },
    badge: ({ state }) => [(state[name] || []).length, false],
  };
}

// -- the heads of the others -----------------------------------------------------------------

function plainHead(describe) {
  const dot = h("span", { class: "dot" });
  const name = h("span", { class: "name" });
  const label = h("span", { class: "mute label", role: "status", "aria-live": "polite" });
  const place = h("span", { class: "faint mono id" });
  const link = h("a", { target: "_blank", rel: "noopener noreferrer" }, "Dask dashboard");
  const words = h("div", { class: "mute" });
  return {
    elements: [h("div", { class: "head" }, dot, name, label, place, h("span", { class: "grow" }),
      link), words],
    tick() {},
    update(state) {
      const facts = describe(state);
      dot.className = `dot ${state.lost ? "lost" : state.state}`;
      say(name, facts.name);
      say(label, state.lost || state.state);
      say(place, facts.place || "");
      say(words, facts.words);
      const safe = /^https?:\/\//.test(facts.link || "");
      show(link, safe);
      if (safe) link.href = facts.link;
    },
  };
}

const conductorHead = () => plainHead((s) => ({
  name: s.type, place: s.address, link: s.dashboard,
  words: s.state === "connected"
    ? `${plural(s.threads, "thread")}, ${Math.round(100 * (s.busy || 0))} % busy, ${s.memory}` : s.crew,
}));

const atomizerHead = () => plainHead((s) => ({
  name: "Atomizer",
  words: [plural(s.run_count || 0, "run"), plural((s.atoms || []).length, "atom"),
    plural((s.conductors || []).length, "conductor")].join(", "),
}));

const KINDS = {
  run: {
    head: runHead,
    tab: { events: (send, rows) => eventsTab(rows), failures: failuresTab,
      output: outputTab, workers: () => workersTab(true), results: resultsTab },
  },
  atomizer: {
    head: atomizerHead,
    tab: { runs: runsTab, events: (send, rows) => eventsTab(rows),
      atoms: () => listTab("atoms", ["atom", "what it does"], (a) => [a.text, a.doc]),
      conductors: () => listTab("conductors", ["conductor", "id", "state", "threads"],
        (c) => [c.type, c.id, c.state || "", c.threads == null ? "" : c.threads]) },
  },
  conductor: { head: conductorHead, tab: { workers: () => workersTab(false) } },
};

// -- a view ----------------------------------------------------------------------------------

let made = 0;

function makeView(model, rows, send, onTab) {
  const kind = model.get("state").kind || "run";
  const prefix = `az-${Date.now().toString(36)}-${made++}`;
  const head = KINDS[kind].head(send);
  const note = h("div", { class: "problem", role: "alert", hidden: true });
  const strip = h("div", { class: "tabs", role: "tablist" });
  const tabs = {};
  for (const name of TABS[kind]) {
    const tab = KINDS[kind].tab[name](send, rows);
    const badge = h("em", {});
    const title = name[0].toUpperCase() + name.slice(1);
    tab.badgeElement = badge;
    tab.handle = h("button", { type: "button", role: "tab", id: `${prefix}-${name}`,
      "aria-controls": `${prefix}-${name}-panel`, onclick: () => open(name) }, title, badge);
    tab.panel = h("div", { role: "tabpanel", id: `${prefix}-${name}-panel`,
      "aria-labelledby": `${prefix}-${name}` }, tab.element);
    tabs[name] = tab;
    strip.append(tab.handle);
  }
  strip.addEventListener("keydown", (event) => {
    const names = TABS[kind];
    const at = names.indexOf(view.tab);
    const place = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
    if (place == null) return;
    event.preventDefault();
    const next = names[(place + names.length) % names.length];
    open(next);
    tabs[next].handle.focus();
  });
  const root = h("div", { class: `az az-${kind}`, role: "region" }, ...head.elements, note, strip,
    ...Object.values(tabs).map((tab) => tab.panel));

  function open(name) {
    view.tab = name;
    for (const [its, tab] of Object.entries(tabs)) {
      tab.handle.setAttribute("aria-selected", String(its === name));
      tab.handle.tabIndex = its === name ? 0 : -1;
      show(tab.panel, its === name);
    }
    update(false);
    onTab();
  }

  function update(renewed) {
    const facts = Object.fromEntries(["news", "failures", "output", "workers", "results"].map(
      (name) => [name, model.get(name)]));
    facts.state = { ...model.get("state"), lost: rows.lost || rows.silent };
    if (rows.lost) facts.state.can = [];
    root.setAttribute("aria-label", `${kind} ${facts.state.id || ""}`.trim());
    head.update(facts.state, renewed);
    say(note, facts.state.note || "");
    show(note, Boolean(facts.state.note));
    for (const [name, tab] of Object.entries(tabs)) {
      const [number, bad] = tab.badge(facts);
      say(tab.badgeElement, number ? count(number) : "");
      tab.badgeElement.className = bad ? "bad" : "";
      if (name === view.tab) tab.update(facts);
    }
  }

  const view = { root, update, tick: head.tick, open, tab: TABS[kind][0] };
  return view;
}

// Hides what a saved notebook keeps of this panel, for here it is alive.
function hideStill(id) {
  const key = `atomizer-still-${id}`;
  if (!id || document.getElementById(key)) return;
  const still = `[data-atomizer-still="${id}"]`;
  const rule = `${still}, .jp-OutputArea-child:has(${still}) { display: none !important }`;
  document.head.append(h("style", { id: key }, rule));
}

export default () => {
  const rows = { list: [], lost: "", silent: "" };
  const views = new Set();
  let send = () => {};
  let waiting = false;
  let renewed = false;

  function draw() {
    waiting = false;
    for (const view of views) view.update(renewed);
    renewed = false;
  }

  function drawSoon() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(draw);
  }

  function take(news) {
    const known = new Set(rows.list.map((row) => row[0]));
    const fresh = ((news && news.rows) || []).filter((row) => !known.has(row[0]));
    if (!fresh.length) return;
    // By when they happened: what several workers tell does not arrive in that order.
    rows.list = [...fresh, ...rows.list].sort((a, b) => b[1] - a[1] || b[0] - a[0]).slice(0, KEPT);
  }

  const tell = () => send({ views: views.size, tabs: [...new Set([...views].map((v) => v.tab))] });

  return {
    initialize({ model }) {
      send = (message) => { if (!rows.lost) model.send(message); };
      take(model.get("news"));
      model.on("change:news", () => { take(model.get("news")); drawSoon(); });
      model.on("change:state", () => { renewed = true; rows.silent = ""; drawSoon(); });
      for (const name of ["failures", "output", "workers", "results"]) {
        model.on(`change:${name}`, drawSoon);
      }
      model.on("change:still", () => hideStill(model.get("still")));
      model.on("comm_live_update", () => { rows.lost = "the kernel is gone"; drawSoon(); });
      // What a notebook was saved with looks alive too.
      const shown = model.get("state");
      setTimeout(() => {
        if (model.get("state") !== shown) return;
        rows.silent = "the kernel does not answer";
        drawSoon();
      }, PATIENCE);
      send({ hello: true });
    },
    render({ model, el }) {
      const view = makeView(model, rows, (message) => send(message), tell);
      views.add(view);
      el.append(view.root);
      view.open(view.tab);
      view.update(true);
      const timer = setInterval(() => view.tick(), 1000);
      hideStill(model.get("still"));
      return () => {
        clearInterval(timer);
        views.delete(view);
        tell();
      };
    },
  };
};
