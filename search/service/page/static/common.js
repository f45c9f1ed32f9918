// What all pages share: requests, messages, numbers in words, elements.

let hiding;

export function say(text) {
  const place = document.getElementById("message");
  place.textContent = text;
  place.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => (place.hidden = true), 12000);
}

// Of what was said to the person already, nobody else needs to hear.
class Told extends Error {}
addEventListener("unhandledrejection", (event) => event.reason instanceof Told && event.preventDefault());

// Say a sentence and return it as an error to throw.
export function refused(sentence) {
  say(sentence);
  return new Told(sentence);
}

export async function ask(path, body, method = body === undefined ? "GET" : "POST", quiet = false) {
  const options = { method, headers: { accept: "application/json" } };
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    if (!quiet) say("The service does not answer; is `secateur serve` still running?");
    throw new Told("no answer");
  }
  if (answer.status === 401) location.href = "/login";
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const told = await answer.json().catch(() => ({}));
  const sentence = typeof told.detail === "string" ? told.detail : `The service answered ${answer.status}.`;
  if (!quiet) say(sentence);
  throw new Told(sentence);
}

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function ago(at) {
  return `${duration(Math.max(0, Date.now() / 1000 - at))} ago`;
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let place = 0;
  while (count >= 1000 && place < units.length - 1) (count /= 1000), (place += 1);
  return `${place ? count.toPrecision(3) : count} ${units[place]}`;
}

// Rate and time left of what a job told last.
export function pace(told) {
  if (!told || !told.total) return { share: 0, text: "" };
  const rate = told.rate;
  const left = rate > 0 && told.done < told.total ? `, ${duration((told.total - told.done) / rate)} left` : "";
  const speed = rate > 0 ? `, ${rate.toLocaleString("en", { maximumSignificantDigits: 3 })} a second` : "";
  const count = `${told.done.toLocaleString("en")} of ${told.total.toLocaleString("en")} ${told.unit}`;
  return { share: told.done / told.total, text: `${count}${speed}${left}${told.note ? `, ${told.note}` : ""}` };
}
