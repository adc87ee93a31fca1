// What LOAD_SCENARIO asks for, from scenarios.json and objectives.json, which Locust reads too.
import { addresses } from "./targets.js";

const described = JSON.parse(open("../../scenarios.json"));
const objectives = JSON.parse(open(__ENV.LOAD_OBJECTIVES || "../../objectives.json"));

const name = __ENV.LOAD_SCENARIO || "mixed";
const scenario = described.scenarios[name];
if (!scenario) throw new Error(`LOAD_SCENARIO: ${name} is none of ${Object.keys(described.scenarios)}`);

const rate = Number(__ENV.LOAD_RATE || 10); // requests a second
const seconds = Number(__ENV.LOAD_SECONDS || scenario.seconds || 120);
const warmSeconds = Number(__ENV.LOAD_WARM_SECONDS || 10);

// The steps of each journey of the mix. A stack without a replica has no reports.
export const deck = scenario.journeys.map((journey) =>
  described.journeys[journey].filter((step) => step !== "get_sales" || addresses.report),
);

const stages = scenario.stages || [{ share: 1, times: 1 }];
const requestsPerJourney = deck.reduce((sum, steps) => sum + steps.length, 0) / deck.length;
const perMinute = (times) => Math.round((60 * times * rate) / requestsPerJourney); // journeys; k6 takes whole numbers
const peak = Math.max(...stages.map((stage) => stage.times));

// A journey that is due and finds none of them free is dropped, and the run fails: they are for journeys of two seconds.
const vus = Math.max(2, Math.ceil((2 * peak * rate) / requestsPerJourney));

const arriving = (steps, startTime) => ({
  executor: "ramping-arrival-rate",
  startTime: `${startTime}s`,
  timeUnit: "1m",
  startRate: steps[0].target,
  preAllocatedVUs: vus,
  stages: steps.flatMap(({ target, duration }) => [
    { target, duration: "0s" }, // at once
    { target, duration: `${duration}s` },
  ]),
});

export const scenarios = {
  ...(warmSeconds > 0 && { warmup: arriving([{ target: perMinute(1), duration: warmSeconds }], 0) }),
  ...(__ENV.LOAD_MARK && { mark: { executor: "per-vu-iterations", exec: "mark", startTime: `${warmSeconds}s` } }),
  [name]: arriving(
    stages.map(({ share, times }) => ({ target: perMinute(times), duration: share * seconds })),
    warmSeconds,
  ),
};

const below = (limit) => [`p(99)<${limit}`];
const judged = [...new Set(deck.flat())].filter((operation) => !objectives.reported_apart.includes(operation));

export const thresholds = {
  dropped_iterations: [`count<=${objectives.dropped_max}`],
  failed: [`count<=${objectives.failed_max}`],
  ...Object.fromEntries(
    judged.flatMap((operation) => [
      [`http_req_duration{scenario:${name},name:${operation}}`, below(objectives.response_ms_p99_below)],
      [`db_ms{scenario:${name},name:${operation}}`, below(objectives.db_ms_p99_below)],
    ]),
  ),
};
