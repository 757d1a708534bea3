// Shows what the stream sends; sends tasks and follows them until they have ended.

const SILENCE = 4000; // ms without an event after which the figures are old
const STATES = { true: "up", false: "down", full: "full", null: "unknown" };

const summary = document.querySelector("#summary");
const problems = document.querySelector("#problems");
const vms = document.querySelector("#vms");
const queues = [...document.querySelectorAll("[data-queue]")];
const failures = document.querySelector("#failures");
const noFailures = document.querySelector("#no-failures");
const services = [...document.querySelectorAll("[data-service]")];
let stream, silence;
let latest; // the last message of the stream
const followed = {}; // queues of sample tasks that are known to run

function show(element, state, text) {
  element.dataset.state = state;
  if (element.textContent !== text) {
    element.textContent = text; // a screen reader hears changes only
  }
}

// The stream ---------------------------------------------------------------------------------------

function listen() {
  stream = new EventSource(document.body.dataset.stream);
  stream.onmessage = (event) => {
    latest = JSON.parse(event.data);
    expectMessage();
    showAll();
  };
  stream.addEventListener("full", (event) => {
    clearTimeout(silence);
    forget(event.data);
  });
  expectMessage();
}

function expectMessage() {
  clearTimeout(silence);
  silence = setTimeout(() => {
    forget("No answer from the server; trying again");
    // The browser gives up after any other answer than a stream, such as that of a log-in page.
    if (stream.readyState === EventSource.CLOSED) {
      listen();
    } else {
      expectMessage();
    }
  }, SILENCE);
}

function forget(text) {
  latest = undefined;
  showAll();
  show(summary, "down", text);
}

// A hidden tab does not listen.
document.addEventListener("visibilitychange", () => {
  clearTimeout(silence);
  stream.close();
  if (!document.hidden) {
    listen();
  }
});
listen();

// The figures ---------------------------------------------------------------------------------------

function showAll() {
  const missing = [];
  for (const item of queues) {
    const name = item.dataset.queue;
    const { waiting, workers } = latest?.queues[name] ?? {};
    const [state, text] = stateOf(workers);
    show(item.querySelector(".state"), state, text);
    if (state === "down") {
      missing.push(`worker-${name}`);
    }
    item.querySelector(".waiting").textContent = waiting?.tasks ?? "–";
    item.querySelector(".oldest").textContent = waiting?.oldest >= 1 ? duration(waiting.oldest) : "";
    // A worker reports every two seconds.
    item.querySelector(".running").textContent = workers ? Math.max(workers.running, followed[name] ?? 0) : "–";
    item.querySelector(".rate").textContent = workers?.done.at(-1) ?? "–";
    item.querySelector(".failed").textContent = workers?.failed.at(-1) ?? "–";
    draw(item, workers?.done ?? [], workers?.failed ?? []);
  }
  for (const item of services) {
    const state = STATES[latest?.services[item.dataset.service] ?? null];
    item.dataset.state = state;
    show(item.querySelector("span"), state, state);
    if (state === "down") {
      missing.push(item.dataset.service);
    }
  }
  showFailures(latest?.failures);
  list(problems, latest?.problems ?? [], problemItem);
  list(vms, latest?.vms ?? [], vmItem);
  const count = latest?.problems.length;
  if (missing.length) {
    show(summary, "down", `Down: ${missing.join(", ")}`);
  } else if (count) {
    show(summary, "down", count === 1 ? "1 problem" : `${count} problems`);
  } else {
    show(summary, "up", "Everything is up");
  }
}

function list(element, entries, makeItem) {
  const text = JSON.stringify(entries);
  if (element.dataset.shown !== text) { // a link that has the focus keeps it
    element.dataset.shown = text;
    element.replaceChildren(...entries.map(makeItem));
  }
}

function problemItem({ problem, sentence }) {
  const item = document.createElement("li");
  const link = document.createElement("a");
  link.href = `${document.body.dataset.runbook}#${problem}`;
  link.textContent = "What to do";
  const what = document.createElement("span"); // of which problem, for a screen reader
  what.className = "hidden";
  what.textContent = `: ${problem}`;
  link.append(what);
  item.append(`${sentence} `, link);
  return item;
}

function vmItem({ vm, backup, certificate }) {
  const item = document.createElement("li");
  const ago = backup ? `${duration(Date.now() / 1000 - backup)} ago` : "unknown";
  const days = Math.floor((certificate - Date.now() / 1000) / 86400);
  item.textContent = `${vm}: last backup ${ago}${certificate ? `, certificate for ${days} days` : ""}`;
  return item;
}

function stateOf(workers) {
  if (!workers) {
    return ["unknown", "Worker unknown"];
  }
  if (workers.up) {
    return ["up", workers.up === 1 ? "Worker up" : `${workers.up} workers up`];
  }
  return workers.stopping ? ["stopping", "Worker is finishing its last tasks"] : ["down", "Worker down"];
}

function duration(seconds) {
  if (seconds < 120) {
    return `${Math.round(seconds)} s`;
  }
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

function draw(item, done, failed) {
  const chart = item.querySelector(".chart");
  const peak = Math.max(...done, ...failed, 0);
  const { width, height } = chart.viewBox.baseVal;
  const across = width / (done.length - 1);
  const up = (0.95 * height) / Math.max(peak, 4); // a single task is not the whole height
  const points = (counts) => counts.map((count, index) => `${index * across},${height - count * up}`).join(" ");
  chart.querySelector(".line").setAttribute("points", points(done));
  chart.querySelector(".area").setAttribute("points", `0,${height} ${points(done)} ${width},${height}`);
  chart.querySelector(".failures").setAttribute("points", Math.max(...failed, 0) ? points(failed) : "");
  chart.classList.toggle("empty", !peak);
  const text = peak ? `Peak: ${peak} per minute` : "nothing done";
  chart.setAttribute("aria-label", `Tasks done and failed, last 10 minutes: ${text}`);
  item.querySelector(".peak").textContent = text;
}

// Failed tasks -------------------------------------------------------------------------------------

let shown; // what is shown of them

function showFailures(found) {
  const text = JSON.stringify(found ?? null);
  if (text === shown) {
    return; // a button that has the focus keeps it
  }
  shown = text;
  noFailures.textContent = found ? "No task has failed." : noFailures.dataset.unknown;
  noFailures.hidden = Boolean(found?.length);
  failures.replaceChildren(
    ...(found ?? []).map((task) => {
      const item = document.querySelector("#failure").content.cloneNode(true).firstElementChild;
      const time = new Date(task.at).toLocaleString();
      item.querySelector(".what").textContent = `${task.task} in ${task.queue || "no queue"}, ${time}`;
      item.querySelector(".state").textContent = task.error;
      const left = task.not_run.length ? `Not run: ${task.not_run.join(", ")}. ` : "";
      item.querySelector(".more").textContent = left + task.why_not;
      item.querySelector("input[name=id]").value = task.id;
      item.querySelector("form").hidden = Boolean(task.why_not);
      return item;
    }),
  );
}

// Sending tasks ------------------------------------------------------------------------------------

async function request(url, options) {
  const response = await fetch(url, options);
  const type = response.headers.get("content-type") || "";
  const answer = type.includes("json") ? await response.json() : {};
  if (!response.ok || !type.includes("json")) {
    throw new Error(answer.error || `The server answered ${response.status}. Reload the page and try again.`);
  }
  return answer;
}

async function run(form, body) {
  const queue = body.get("queue"); // of a sample task
  const buttons = form.querySelectorAll("button");
  const progress = form.querySelector("progress");
  const output = form.querySelector("output");
  const report = (state, text) => show(output, state, text);
  const count = (running) => {
    followed[queue] = running;
    showAll();
  };
  const advance = (value, state) => {
    if (progress) {
      progress.value = value;
      progress.dataset.state = state;
    }
  };
  buttons.forEach((button) => (button.disabled = true));
  advance(0, "running");
  report("running", "Sending");
  try {
    const { id, follow = true, why_not } = await request(form.action, { method: "POST", body });
    if (!follow) {
      return report("up", why_not ? `Sent. ${why_not}` : "Sent");
    }
    for (let looks = 0; ; looks++) {
      await new Promise((wake) => setTimeout(wake, looks < 50 ? 300 : 1500));
      const task = await request(`${document.body.dataset.tasks}${id}/`);
      advance(task.progress, "error" in task ? "down" : "running");
      if ("result" in task) {
        return report("up", queue ? task.result : "Done");
      }
      if ("error" in task) {
        return report("down", `Failed: ${task.error}`);
      }
      if (task.state !== "PENDING") {
        count(1);
        report("running", "Running");
      } else if (queue && stateOf(latest?.queues[queue].workers)[0] === "down") {
        report("running", "Waiting until the worker is up again");
      } else {
        report("running", "Waiting for its turn");
      }
    }
  } catch (error) {
    report("down", error.message);
  } finally {
    count(0);
    buttons.forEach((button) => (button.disabled = false));
  }
}

document.querySelector("main").addEventListener("submit", (event) => {
  const form = event.target;
  event.preventDefault();
  if (!form.dataset.confirm || confirm(form.dataset.confirm)) {
    run(form, new FormData(form, event.submitter));
  }
});
