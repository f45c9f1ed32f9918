import { ask, element, pace } from "./common.js";

const place = document.getElementById("job");
const path = `/api/jobs/${place.dataset.job}`;
const by = (id) => document.getElementById(id);
let stage = "", state = "";

function show(job) {
  by("state").textContent = job.state;
  by("state").className = `state ${job.state}`;
  const told = job.progress, speed = pace(told), running = job.state === "running";
  by("stage").textContent = running ? (told ? told.stage : "starting") : job.state === "queued" ? "waits for a free slot" : "";
  by("bar").hidden = !running;
  by("bar").value = speed.share;
  by("rate").textContent = (running && speed.text) || "\u00a0";
  by("reason").hidden = !job.reason;
  by("reason").textContent = job.reason || "";
  if (told?.said?.length) by("said").replaceChildren(...told.said.map((line) => element("li", {}, line)));
  else if (!["queued", "running"].includes(job.state)) by("said").replaceChildren(element("li", { className: "muted" }, "Nothing."));
  by("cancel").hidden = !["queued", "running"].includes(job.state);
  by("resume").hidden = !["failed", "cancelled"].includes(job.state);
  by("delete").hidden = ["queued", "running"].includes(job.state);
  by("to-run").hidden = job.state !== "succeeded";
  const news = job.state !== state ? `${job.title}: ${job.state}` : running && told && told.stage !== stage ? told.stage : "";
  if (news) by("news").textContent = news;
  state = job.state;
  stage = told?.stage || stage;
  if (job.kind === "generate" && job.state === "succeeded") hear();
}

async function hear() {
  const [told] = await ask(`${path}/output`);
  const texts = by("texts");
  texts.hidden = false;
  texts.replaceChildren(
    ...[["Dense", told?.text], ["Pruned", told?.beside]].map(([name, text]) =>
      element("section", {}, element("h2", {}, name), element("p", {}, text ?? "")),
    ),
  );
}

function watch() {
  const events = new EventSource(`${path}/events`);
  events.addEventListener("job", (event) => {
    const job = JSON.parse(event.data);
    show(job);
    // The service has said its last word, and a browser would ask for more.
    if (!["queued", "running"].includes(job.state)) events.close();
  });
}

by("cancel").addEventListener("click", async () => show(await ask(`${path}/cancel`, {})));
by("resume").addEventListener("click", async () => {
  show(await ask(`${path}/resume`, {}));
  watch();
});
by("delete").addEventListener("click", async () => {
  await ask(path, undefined, "DELETE");
  location.href = "/";
});
by("log-box").addEventListener("toggle", async () => {
  if (!by("log-box").open) return;
  const answer = await fetch(`${path}/log`);
  by("log").textContent = (await answer.text()) || "Nothing yet.";
});
watch();
