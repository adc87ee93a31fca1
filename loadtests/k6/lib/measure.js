// What is counted of an answer, by operation (the tag `name`): how long it took is k6's own http_req_duration, what of
// it was spent in the database comes from the header Server-Timing (W3C Server Timing).
import exec from "k6/execution";
import { Counter, Trend } from "k6/metrics";

const dbTime = new Trend("db_ms");
const failed = new Counter("failed");
const acknowledged = new Counter("acknowledged");

// Milliseconds in statements, undefined when the answer does not say.
export function databaseTime(header) {
  const found = /(?:^|,)\s*db\s*;\s*dur=([0-9.]+)/.exec(header || "");
  return found ? Number(found[1]) : undefined;
}

// Whether the answer is what was `expected`. Any other, and one that does not say its time in the database, has failed.
export function measured(name, response, expected) {
  const db = databaseTime(response.headers["Server-Timing"]);
  if (db !== undefined) dbTime.add(db, { name });
  const good = db !== undefined && expected(response);
  if (!good) {
    failed.add(1, { name });
    console.error(`${name}: ${response.status} ${response.error} ${response.body}`);
  }
  return good;
}

// The order's id goes with the count as metadata: it is no tag, as each would make a time series of its own.
export function acknowledge(orderId) {
  exec.vu.metrics.metadata.order_id = orderId;
  acknowledged.add(1);
  delete exec.vu.metrics.metadata.order_id;
}
