// One function for each operation: it asks, has the answer measured, and says whether the journey can go on.
import http from "k6/http";

import { acknowledge, measured } from "./measure.js";
import { addresses } from "./targets.js";

const ok = (response) => response.status === 200;
const created = (response) => response.status === 201;
const soldOut = (response) => response.status === 409 && response.json("code") === "out_of_stock";

function get(name, url, token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return measured(name, http.get(url, { headers, tags: { name } }), ok);
}

// Every placement has a key of its own, made once: whoever sends it again under that key gets the same order.
function place(name, visit, product, expected) {
  const body = JSON.stringify({ currency: "USD", items: [{ product_id: product, quantity: 1 }] });
  const headers = {
    Authorization: `Bearer ${visit.buyer}`,
    "Content-Type": "application/json",
    "Idempotency-Key": crypto.randomUUID(),
  };
  const response = http.post(`${addresses.orders}/v1/orders`, body, { headers, tags: { name } });
  const good = measured(name, response, expected);
  if (created(response)) {
    visit.order = response.json("order_id");
    visit.customer = visit.buyer;
    acknowledge(visit.order);
  }
  return good;
}

const catalog = addresses.catalog;
const orders = addresses.orders;

export const operations = {
  list_products: () => get("list_products", `${catalog}/v1/products?limit=20`),
  search_products: (visit) => get("search_products", `${catalog}/v1/search?limit=20&q=${encodeURIComponent(visit.word)}`),
  get_product: (visit) => get("get_product", `${catalog}/v1/products/${visit.product}`),
  get_inventory: (visit) => get("get_inventory", `${orders}/v1/inventory/${visit.product}`, visit.buyer),
  place_order: (visit) => place("place_order", visit, visit.product, created),
  place_of_one_product: (visit) => place("place_of_one_product", visit, addresses.sale, (response) => created(response) || soldOut(response)),
  get_order: (visit) => get("get_order", `${orders}/v1/orders/${visit.order}`, visit.customer),
  get_order_events: (visit) => get("get_order_events", `${orders}/v1/orders/${visit.order}/events`, visit.customer),
  list_orders: (visit) => get("list_orders", `${orders}/v1/orders?limit=20`, visit.customer),
  list_summaries: () => get("list_summaries", `${orders}/v1/order-summaries?limit=20`, addresses.staff),
  get_sales: () => get("get_sales", `${orders}/v1/reports/sales?${addresses.report}`, addresses.staff),
};
