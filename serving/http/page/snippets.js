/** Shows the request for the current picture as curl, as Python over HTTP and as Python over gRPC. */

import { FILE_TYPE, PREDICT } from "./api.js";
import { byId, element } from "./elements.js";
import { storedKey } from "./keys.js";
import { TEXT } from "./text.js";

for (const title of ["curl", "Python", "gRPC"]) {
  const code = element("code", { id: title.toLowerCase() });
  const button = element("button", { type: "button", className: "copy", ariaLabel: TEXT.copyOf(title), hidden: !navigator.clipboard }, TEXT.copy);
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = TEXT.copied;
    setTimeout(() => (button.textContent = TEXT.copy), 1500);
  });
  const text = element("pre", { tabIndex: 0, ariaLabel: title }, code);
  byId("snippets").append(element("div", { className: "snippet" }, element("h3", {}, title), button, text));
}

/** Write the snippets. `service` holds the gRPC port, or is null if it is not read yet. The key itself never appears. */
export function drawSnippets(file, service) {
  const name = file?.name ?? "slice.png";
  const path = JSON.stringify(name);
  const keyed = Boolean(storedKey());
  byId("api-subject").textContent = file ? name : TEXT.aPicture;
  const authorization = keyed ? ` \\\n  -H "Authorization: Bearer $CHESTCT_KEY"` : "";
  byId("curl").textContent = `curl --data-binary @${quoted(name)} \\\n  -H ${quoted(`Content-Type: ${FILE_TYPE}`)}${authorization} \\\n  ${quoted(PREDICT.href)}`;
  const os = keyed ? "import os\n" : "";
  const bearer = `f"Bearer {os.environ['CHESTCT_KEY']}"`;
  byId("python").textContent = `import json
${os}from pathlib import Path
from urllib.request import Request, urlopen

request = Request(
    ${JSON.stringify(PREDICT.href)},
    data=Path(${path}).read_bytes(),
    headers={"Content-Type": "${FILE_TYPE}"${keyed ? `, "Authorization": ${bearer}` : ""}},
)
answer = json.load(urlopen(request))
print(answer["decision"], answer["label"], answer["confidence"])`;
  const address = JSON.stringify(`${location.hostname}:${service?.grpc_port || 3001}`);
  const channel = service?.grpc_tls ? `secure_channel(${address}, grpc.ssl_channel_credentials())` : `insecure_channel(${address})`;
  byId("grpc").textContent = `# pip install grpcio open-inference-grpc protobuf
${os}from pathlib import Path

import grpc
from open_inference.grpc import protocol, service

image = {
    "name": "image",
    "datatype": "BYTES",
    "shape": [1],
    "contents": {"bytes_contents": [Path(${path}).read_bytes()]},
}
request = protocol.ModelInferRequest(model_name="chestct", inputs=[image])
with grpc.${channel} as channel:
    stub = service.GRPCInferenceServiceStub(channel)
    answer = stub.ModelInfer(request, timeout=30${keyed ? `, metadata=[("authorization", ${bearer})]` : ""})
raw = dict(zip((output.name for output in answer.outputs), answer.raw_output_contents))
print(raw["decision"][4:].decode(), raw["label"][4:].decode())`;
}

const quoted = (word) => (/^[\w./:-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

