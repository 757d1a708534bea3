// Shows what the stream tells, and sends sample tasks and follows them until they have ended.

const SILENCE = 4000; // ms without an event after which the figures are old
const STATES = { true: "up", false: "down", null: "unknown" };

const summary = document.querySelector("#summary");
const queues = [...document.querySelectorAll("[data-queue]")];
const services = [...document.querySelectorAll("[data-service]")];
let stream, silence;
let latest; // what the stream told last

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
    expectNews();
    showAll();
  };
  stream.addEventListener("full", (event) => {
    clearTimeout(silence);
    forget(event.data);
  });
  expectNews();
}

function expectNews() {
  clearTimeout(silence);
  silence = setTimeout(() => {
    forget("No answer from the server; trying again");
    // The browser gives up after any other answer than a stream, such as that of a log-in page.
    if (stream.readyState === EventSource.CLOSED) {
      listen();
    } else {
      expectNews();
    }
  }, SILENCE);
}

function forget(text) {
  latest = undefined;
  showAll();
  show(summary, "down", text);
}

// A tab that nobody sees does not listen.
document.addEventListener("visibilitychange", () => {
  clearTimeout(silence);
  stream.close();
  if (!document.hidden) {
    listen();
  }
});
listen();

// What it tells ------------------------------------------------------------------------------------

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
    item.querySelector(".running").textContent = workers?.running ?? "–";
    item.querySelector(".rate").textContent = workers?.done.at(-1) ?? "–";
    draw(item, workers?.done ?? []);
  }
  for (const item of services) {
    const state = STATES[latest?.services[item.dataset.service] ?? null];
    item.dataset.state = state;
    show(item.querySelector("span"), state, state);
    if (state === "down") {
      missing.push(item.dataset.service);
    }
  }
  show(summary, missing.length ? "down" : "up", missing.length ? `Down: ${missing.join(", ")}` : "Everything is up");
}

function stateOf(workers) {
  if (!workers) {
    return ["unknown", "Worker unknown"];
  }
  if (workers.up) {
    return ["up", workers.up === 1 ? "Worker up" : `${workers.up} workers up`];
  }
  return workers.stopping ? ["stopping", "Worker ends its last tasks"] : ["down", "Worker down"];
}

function duration(seconds) {
  if (seconds < 120) {
    return `${Math.round(seconds)} s`;
  }
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

function draw(item, done) {
  const chart = item.querySelector(".chart");
  const most = Math.max(...done, 0);
  const { width, height } = chart.viewBox.baseVal;
  const across = width / (done.length - 1);
  const up = (0.95 * height) / Math.max(most, 4); // a single task is no peak
  const points = done.map((count, index) => `${index * across},${height - count * up}`);
  chart.querySelector(".line").setAttribute("points", points.join(" "));
  chart.querySelector(".area").setAttribute("points", `0,${height} ${points.join(" ")} ${width},${height}`);
  const text = most ? `at most ${most} a minute` : "nothing done";
  chart.setAttribute("aria-label", `Tasks done, last ten minutes: ${text}`);
  item.querySelector(".most").textContent = text;
}

// Sample tasks -------------------------------------------------------------------------------------

async function ask(url, options) {
  const response = await fetch(url, options);
  const type = response.headers.get("content-type") || "";
  const answer = type.includes("json") ? await response.json() : {};
  if (!response.ok || !type.includes("json")) {
    throw new Error(answer.error || `The server answered ${response.status}. Try to reload the page.`);
  }
  return answer;
}

async function run(form, body) {
  const queue = body.get("queue");
  const buttons = form.querySelectorAll("button");
  const progress = form.querySelector("progress");
  const output = form.querySelector("output");
  const say = (state, text) => show(output, state, text);
  buttons.forEach((button) => (button.disabled = true));
  progress.value = 0;
  say("running", "Sending");
  try {
    const { id } = await ask(form.action, { method: "POST", body });
    for (let looks = 0; ; looks++) {
      await new Promise((wake) => setTimeout(wake, looks < 50 ? 300 : 1500));
      const task = await ask(`${form.action}${id}/`);
      progress.value = task.progress;
      if ("result" in task) {
        return say("up", task.result);
      }
      if ("error" in task) {
        return say("down", `Failed: ${task.error}`);
      }
      if (task.state !== "PENDING") {
        say("running", "Running");
      } else if (stateOf(latest?.queues[queue].workers)[0] === "down") {
        say("running", "Waiting until the worker is up again");
      } else {
        say("running", "Waiting for its turn");
      }
    }
  } catch (error) {
    say("down", error.message);
  } finally {
    buttons.forEach((button) => (button.disabled = false));
  }
}

for (const form of document.querySelectorAll(".queue form")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run(form, new FormData(form, event.submitter));
  });
}
