// Prints what AsyncAPI's own parser and rules have against the document in a file, one finding a line. Exit code 1 when
// there is an error or a warning; a hint (such as a newer version of the specification) is printed only.
import { readFileSync } from "node:fs";
import { DiagnosticSeverity, Parser } from "@asyncapi/parser";

const { diagnostics } = await new Parser().parse(readFileSync(process.argv[2], "utf8"));
for (const { severity, code, path, message } of diagnostics) {
  console.log(`${DiagnosticSeverity[severity]} ${code} at /${path.join("/")}: ${message}`);
}
process.exitCode = diagnostics.some(({ severity }) => severity <= DiagnosticSeverity.Warning) ? 1 : 0;
