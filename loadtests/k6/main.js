// A shop under load, as an open model: journeys begin at the rate that is asked for, whether or not earlier ones have
// ended. docs/load.md says what each scenario models; `make load` runs this, and so does
//   k6 run -e LOAD_SCENARIO=mixed -e LOAD_RATE=100 -e LOAD_SECONDS=120 -e LOAD_WARM_SECONDS=10 \
//          -e LOAD_TARGETS=<file> -e LOAD_SUMMARY=<file> loadtests/k6/main.js
import exec from "k6/execution";

import { operations } from "./lib/operations.js";
import { deck, scenarios, thresholds } from "./lib/scenario.js";
import { visitor } from "./lib/targets.js";

export const options = {
  scenarios,
  thresholds,
  discardResponseBodies: false, // an order's id is read from its answer
  setupTimeout: "10s",
  summaryTrendStats: ["count", "p(50)", "p(99)", "max"],
};

// One iteration is one journey. They are taken in turn, so that a mix is the same in every run; one that fails ends.
export default function () {
  const visit = visitor();
  for (const name of deck[exec.scenario.iterationInTest % deck.length]) {
    if (!operations[name](visit)) return;
  }
}

// Says when the warm-up is over: the driver reads what servers have counted until then.
export function mark() {
  console.log(__ENV.LOAD_MARK);
}

export function handleSummary(data) {
  return __ENV.LOAD_SUMMARY ? { [__ENV.LOAD_SUMMARY]: JSON.stringify(data) } : { stdout: JSON.stringify(data) };
}
