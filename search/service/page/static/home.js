import { ago, ask, element, pace, say } from "./common.js";

const form = document.getElementById("search");
const rows = document.getElementById("job-rows");
const news = document.getElementById("job-news");
const states = new Map();

function merged(base, more) {
  for (const [key, value] of Object.entries(more)) {
    const inner = value && typeof value === "object" && !Array.isArray(value);
    base[key] = inner ? merged({ ...(base[key] || {}) }, value) : value;
  }
  return base;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = Object.fromEntries(new FormData(form));
  let settings = { model: given.model, budget: [`${given.metric}=${given.amount.trim()}`], text: { source: given.source } };
  if (given.report) settings.text.report = given.report;
  try {
    if (given.more.trim()) settings = merged(settings, JSON.parse(given.more));
  } catch (error) {
    say(`More settings must be JSON, but are not (${error.message}); correct them.`);
    return;
  }
  const button = document.getElementById("begin");
  button.disabled = true;
  try {
    const job = await ask("/api/jobs", { kind: "run", settings, ...(given.name ? { name: given.name } : {}) });
    location.href = `/jobs/${job.id}`;
  } finally {
    button.disabled = false;
  }
});

function row(job) {
  const told = pace(job.progress);
  const busy = job.state === "running" && job.progress;
  const progress = busy
    ? [element("div", {}, `${job.progress.stage}`), element("progress", { max: 1, value: told.share, "aria-label": job.progress.stage })]
    : [element("span", { className: "muted" }, job.reason || "")];
  const act = { queued: "cancel", running: "cancel", failed: "resume", cancelled: "resume" }[job.state];
  const button = act && element("button", { type: "button", onclick: () => change(job, act) }, act === "cancel" ? "Cancel" : "Resume");
  button?.setAttribute("aria-label", `${button.textContent}: ${job.title}`);
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, element("a", { href: `/jobs/${job.id}` }, job.title)),
    element("td", {}, element("span", { className: `state ${job.state}` }, job.state)),
    element("td", {}, ...progress),
    element("td", { className: "muted" }, ago(job.created_at)),
    element("td", {}, button || ""),
  );
}

async function change(job, act) {
  await ask(`/api/jobs/${job.id}/${act}`, {});
  await show();
}

async function show() {
  const jobs = await ask("/api/jobs?limit=50", undefined, "GET", true);
  const focused = document.activeElement?.getAttribute("aria-label");
  if (jobs.length) rows.replaceChildren(...jobs.map(row));
  if (focused) rows.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
  for (const job of jobs) {
    const before = states.get(job.id);
    if (before && before !== job.state) news.textContent = `${job.title}: ${job.state}`;
    states.set(job.id, job.state);
  }
  return jobs.some((job) => job.state === "queued" || job.state === "running");
}

async function watch() {
  const busy = await show().catch(() => false);
  setTimeout(watch, document.hidden ? 15000 : busy ? 1500 : 5000);
}
watch();
