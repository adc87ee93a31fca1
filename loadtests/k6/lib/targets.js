// What there is to ask for: addresses, tokens, products and orders, from the file that LOAD_TARGETS names.
import { SharedArray } from "k6/data";

// Read once and shared: each VU would keep a copy of its own otherwise.
const shared = (name) => new SharedArray(name, () => JSON.parse(open(__ENV.LOAD_TARGETS))[name]);

const products = shared("products");
const words = shared("words");
const buyers = shared("buyers");
const customers = shared("customers");
const [addresses] = shared("addresses");

export { addresses };

// By Zipf's law: what is on rank r is taken in proportion to 1/r.
const popular = (list) => list[Math.floor(list.length ** Math.random()) - 1];
const any = (list) => list[Math.floor(Math.random() * list.length)];

// Who makes a journey, and what it is about.
export function visitor() {
  const customer = popular(customers);
  return {
    buyer: any(buyers),
    customer: customer.token,
    order: any(customer.orders),
    product: popular(products),
    word: any(words),
  };
}
