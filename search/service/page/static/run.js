import { ask, bytes, element, pace, refused, say } from "./common.js";
import { draw, drawDamages, drawMap, setColours } from "./plots.js";
import { Sliders } from "./sliders.js";

const place = document.getElementById("run");
const run = place.dataset.run, path = `/api/runs/${run}`;
const by = (id) => document.getElementById(id);
const METRICS = {
  parameters: "decoder parameters", nonzero_parameters: "non-zero parameters", weight_bytes: "weights",
  kv_cache_bytes_per_token: "KV cache a token", flops_per_token: "FLOPs a token", latency: "latency",
};
const SHOWN = ["parameters", "weight_bytes", "kv_cache_bytes_per_token", "flops_per_token", "latency"];

if (place.dataset.state === "finished") begin();

async function begin() {
  setColours(JSON.parse(place.dataset.colours));
  const told = await ask(`${path}/sliders`);
  const b = { name: "", genes: null, answer: null };
  const sliders = new Sliders(told, [by("sliders-0"), by("sliders-1")], moved);
  const starts = Object.entries(told.starts);
  for (const select of [by("start"), by("b")]) {
    select.replaceChildren(...starts.map(([name]) => element("option", { value: name }, name.replaceAll("_", " "))));
  }
  let asked = 0, waiting = false, busy = false, answer = null, later;

  function moved() {
    if (busy) {
      waiting = true;
      return;
    }
    predict();
  }

  async function predict() {
    busy = true;
    const own = ++asked;
    try {
      answer = await ask(`${path}/predict`, { genes: [sliders.genes] });
      if (own === asked) show();
    } catch {
      by("predicted").replaceChildren(entry("prediction", "none", ["the service did not answer"], "over"));
    } finally {
      busy = false;
      if (waiting) {
        waiting = false;
        predict();
      }
    }
    clearTimeout(later);
    later = setTimeout(settle, 350);
  }

  // What a person who moves on does not wait for.
  async function settle() {
    by("spoken").textContent = spoken(answer);
    compare();
    const { damages } = await ask(`${path}/damages`, sliders.architecture);
    await drawDamages(by("why"), damages, answer.targets[0].title.toUpperCase());
  }

  function show() {
    by("predicted").replaceChildren(...numbers(answer, told));
    document.dispatchEvent(new CustomEvent("predicted"));
  }

  async function compare() {
    if (!b.answer || !answer) return;
    drawMap(by("map"), sliders.genes, b.genes, sliders.dense, ["A, the sliders", `B, ${b.name}`]);
    table(by("ab"), answer, b);
  }

  async function chooseB(name, genes) {
    Object.assign(b, { name, genes, answer: await ask(`${path}/predict`, { genes: [genes] }) });
    compare();
  }

  by("start").addEventListener("change", () => sliders.begin(told.starts[by("start").value]));
  by("reset").addEventListener("click", () => sliders.begin(told.starts[by("start").value]));
  by("b").addEventListener("change", () => chooseB(by("b").value.replaceAll("_", " "), sliders.genesOf(told.starts[by("b").value])));
  by("to-b").addEventListener("click", () => {
    if (!by("b").querySelector("[value=kept]")) by("b").append(element("option", { value: "kept" }, "kept"));
    told.starts.kept = sliders.architecture;
    by("b").value = "kept";
    chooseB("kept", sliders.genes);
  });
  by("save").addEventListener("click", () => {
    const file = new Blob([JSON.stringify(sliders.architecture, null, 1)], { type: "application/json" });
    element("a", { href: URL.createObjectURL(file), download: `${run}-architecture.json` }).click();
  });

  sliders.begin(told.starts.winner);
  by("b").value = told.starts.uniform ? "uniform" : "dense";
  by("b").dispatchEvent(new Event("change"));
  figures(sliders);
  speak();
  exportsOf();
  recover();
}

function amount(metric, value) {
  if (metric === "latency") return value >= 1e6 ? `${(value / 1e6).toPrecision(3)} ms` : `${value} ns`;
  if (metric.includes("bytes")) return bytes(value);
  return value.toLocaleString("en", { maximumFractionDigits: 0 });
}

function number(value) {
  return value.toLocaleString("en", { minimumSignificantDigits: 4, maximumSignificantDigits: 4, useGrouping: false });
}

function entry(title, value, lines, className = "") {
  const below = lines.filter(Boolean).map((line) => element("small", {}, line));
  return element("div", {}, element("dt", {}, title), element("dd", { className }, value, ...below));
}

function numbers(answer, told) {
  const quality = answer.targets.map((each) => {
    const change = each.winner ? `${signed(100 * (each.value[0] / each.winner - 1))} % to the winner` : "";
    return entry(named(each.title), number(each.value[0]), [`${number(each.lower[0])} to ${number(each.upper[0])}`, change]);
  });
  const limits = new Map(told.budgets.map((budget) => [budget.metric, budget]));
  const metrics = SHOWN.filter((metric) => metric in answer.costs);
  for (const metric of limits.keys()) if (!metrics.includes(metric)) metrics.unshift(metric);
  const costs = metrics.map((metric) => {
    const value = answer.costs[metric][0], budget = limits.get(metric), over = budget && value > budget.limit;
    const share = `${(100 * value / answer.dense[metric]).toFixed(1)} % of dense`;
    const below = budget ? `${share}, ${over ? "over" : "within"} ${budget.told}` : share;
    return entry(METRICS[metric] || metric, amount(metric, value), [below], over ? "over" : "");
  });
  return [...quality, ...costs];
}

function named(title) {
  return title === "kl" ? "predicted KL" : `predicted ${title}`;
}

function signed(value) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`;
}

function spoken(answer) {
  const quality = answer.targets.map((each) => `${named(each.title)} ${number(each.value[0])}`);
  const share = (100 * answer.costs.parameters[0]) / answer.dense.parameters;
  return `${quality.join(", ")}, ${share.toFixed(1)} percent of the parameters, ${answer.within[0] ? "within" : "over"} the budget`;
}

function table(target, a, b) {
  const rows = [
    ...a.targets.map((each, i) => [named(each.title), number(each.value[0]), number(b.answer.targets[i].value[0]), each.value[0] / b.answer.targets[i].value[0]]),
    ...Object.keys(a.costs).map((metric) => [METRICS[metric] || metric, amount(metric, a.costs[metric][0]), amount(metric, b.answer.costs[metric][0]), a.costs[metric][0] / b.answer.costs[metric][0]]),
  ];
  const titles = ["A, the sliders", `B, ${b.name}`, "A against B"].map((text) => element("th", { scope: "col" }, text));
  const head = element("tr", {}, element("td", {}), ...titles);
  target.replaceChildren(
    element("thead", {}, head),
    element("tbody", {}, ...rows.map(([name, own, other, ratio]) =>
      element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, own), element("td", {}, other), element("td", {}, Number.isFinite(ratio) ? `${signed(100 * (ratio - 1))}\u00a0%` : "–")))),
  );
}

async function figures(sliders) {
  const found = await ask(`${path}/figures`);
  for (const section of document.querySelectorAll("[data-optional]")) section.hidden = !(section.dataset.optional in found);
  by("no-prediction").hidden = "prediction" in found;
  // Far below the fold nothing is drawn before somebody looks.
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      const told = found[target.dataset.figure];
      target.append(element("p", {}, `${told.summary} ${told.note}`));
      draw(target, told.figure, told.height, told.summary, target.dataset.figure === "pareto" ? (point) => load(point, sliders) : undefined);
    }
  }, { rootMargin: "400px" });
  for (const target of document.querySelectorAll("[data-figure]")) if (target.dataset.figure in found) seen.observe(target);
}

async function load(point, sliders) {
  const fingerprint = /^[0-9a-f]{16}/.exec(point.text || "")?.[0];
  if (!fingerprint) return;
  const told = await ask(`${path}/pairs/${fingerprint}`);
  const all = sliders.begin(told.architecture);
  by("what-if").scrollIntoView();
  by("spoken").textContent = `Loaded ${fingerprint}`;
  if (!all) say("Some of its widths are no choice of the sliders; they stand at the nearest.");
}

// Queue a job and tell what it does until it is finished.
async function work(request, shown) {
  const job = await ask("/api/jobs", request);
  return new Promise((done, failed) => {
    const events = new EventSource(`/api/jobs/${job.id}/events`);
    events.addEventListener("job", (event) => {
      const now = JSON.parse(event.data);
      shown(now);
      if (["queued", "running"].includes(now.state)) return;
      events.close();
      if (now.state === "succeeded") done(now);
      else failed(refused(now.reason || `The job is ${now.state}.`));
    });
  });
}

function inWords(job) {
  if (job.state === "queued") return "Waits for a free slot…";
  return job.progress ? `${job.progress.stage}: ${pace(job.progress).text}` : "Starting…";
}

function speak() {
  by("generate").addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = new FormData(event.target), button = event.target.querySelector("button");
    button.disabled = true;
    try {
      const shown = (job) => by("texts").replaceChildren(element("p", { className: "muted" }, inWords(job)));
      const job = await work({ kind: "generate", run, prompt: form.get("prompt"), tokens: Number(form.get("tokens")) }, shown);
      const [told] = await ask(`/api/jobs/${job.id}/output`);
      by("texts").replaceChildren(...[["Dense", told.text], ["Pruned", told.beside]].map(([name, text]) =>
        element("section", { className: "card" }, element("h3", {}, name), element("p", {}, text))));
    } finally {
      button.disabled = false;
    }
  });
}

async function exportsOf() {
  const rows = by("exports");
  async function list() {
    const found = await ask(`${path}/exports`);
    rows.replaceChildren(...found.map((each) =>
      element("tr", {}, element("th", { scope: "row" }, each.name), element("td", {}, each.format), element("td", {}, bytes(each.bytes)),
        element("td", {}, element("a", { href: `${path}/exports/${each.name}/archive`, download: "" }, `Download ${each.name}`)))));
  }
  for (const button of by("export-buttons").querySelectorAll("button")) {
    const words = button.textContent;
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        await work({ kind: "export", run, format: button.dataset.format }, (job) => (button.textContent = inWords(job)));
        await list();
      } finally {
        button.disabled = false;
        button.textContent = words;
      }
    });
  }
  await list();
}

function recover() {
  by("recover").addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const data = form.get("data") ? { data: [form.get("data")] } : {};
    const job = await ask("/api/jobs", { kind: "recover", run, steps: Number(form.get("steps")), ...data });
    location.href = `/jobs/${job.id}`;
  });
}
