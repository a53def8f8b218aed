// Calls the service once in each way that gRPC has, and prints the outcomes as JSON.
//
// Arguments: the address, a digit's image, and optionally files of an authority, a client's key and its certificate (TLS).
const fs = require("fs");
const path = require("path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, imagePath, ...pem] = process.argv.slice(2);
const protos = path.join(__dirname, "..", "..", "..", "protos");
const definition = loader.loadSync("digits/v1/digit_service.proto", { includeDirs: [protos], keepCase: true, enums: String });
const { DigitService } = grpc.loadPackageDefinition(definition).digits.v1;
const inference = loader.loadSync("inference/open_inference.proto", { includeDirs: [protos], keepCase: true });
const { GRPCInferenceService } = grpc.loadPackageDefinition(inference).inference;
const credentials = pem.length ? grpc.credentials.createSsl(...pem.map((file) => fs.readFileSync(file))) : grpc.credentials.createInsecure();
const client = new DigitService(address, credentials);
const tensors = new GRPCInferenceService(address, credentials);
const crop = fs.readFileSync(imagePath);
const soon = () => ({ deadline: Date.now() + 20000 });

const unary = (request, options = soon()) =>
  new Promise((resolve) => {
    client.Recognize(request, new grpc.Metadata(), options, (error, answer) =>
      resolve(error ? { code: grpc.status[error.code], details: error.details } : { digit: answer.digit }),
    );
  });

// Sends requests on a stream of a client, and returns what `read` takes from each answer.
const streamed = (call, requests, read) =>
  new Promise((resolve, reject) => {
    const answers = [];
    call.on("data", (answer) => answers.push(read(answer)));
    call.on("error", reject);
    call.on("end", () => resolve(answers));
    requests.forEach((request) => call.write(request));
    call.end();
  });
const blank = Buffer.alloc(784);
const tensor = { id: "piece 7", inputs: [{ name: "images", datatype: "UINT8", shape: [1, 28, 28] }], raw_input_contents: [blank] };

(async () => {
  const outcomes = {
    blanks: await streamed(
      client.RecognizeStream(new grpc.Metadata(), soon()),
      [{ id: 3, request: { image: blank } }],
      (answer) => [Number(answer.id), answer.answer.decision],
    ),
    tensors: await streamed(tensors.ModelStreamInfer(new grpc.Metadata(), soon()), [tensor], ({ infer_response: answer }) => [
      answer.id,
      answer.model_name,
      answer.outputs.length,
      answer.raw_output_contents.length,
      Object.keys(answer.parameters),
    ]),
    unary: await unary({ crop }),
    refused: await unary({ crop, model: "ä%" }),
    together: (await Promise.all([...Array(200)].map(() => unary({ crop })))).filter((one) => one.digit === 7).length,
    stream: await streamed(
      client.RecognizeStream(new grpc.Metadata(), soon()),
      [...Array(50)].map((_, id) => ({ id, request: { crop } })),
      (answer) => answer.answer.digit,
    ),
    late: await unary({ crop }, { deadline: Date.now() - 1 }),
  };
  console.log(JSON.stringify(outcomes));
  client.close();
  tensors.close();
})();
