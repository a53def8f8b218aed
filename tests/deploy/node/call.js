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
const credentials = pem.length ? grpc.credentials.createSsl(...pem.map((file) => fs.readFileSync(file))) : grpc.credentials.createInsecure();
const client = new DigitService(address, credentials);
const crop = fs.readFileSync(imagePath);
const soon = () => ({ deadline: Date.now() + 20000 });

const unary = (request, options = soon()) =>
  new Promise((resolve) => {
    client.Recognize(request, new grpc.Metadata(), options, (error, answer) =>
      resolve(error ? { code: grpc.status[error.code], details: error.details } : { digit: answer.digit }),
    );
  });

const stream = (count) =>
  new Promise((resolve, reject) => {
    const digits = {};
    const call = client.RecognizeStream(new grpc.Metadata(), soon());
    call.on("data", (answer) => (digits[answer.id] = answer.answer.digit));
    call.on("error", reject);
    call.on("end", () => resolve(Object.values(digits)));
    for (let id = 1; id <= count; id++) call.write({ id, request: { crop } });
    call.end();
  });

(async () => {
  const outcomes = {
    unary: await unary({ crop }),
    refused: await unary({ crop, model: "ä%" }),
    together: (await Promise.all([...Array(200)].map(() => unary({ crop })))).filter((one) => one.digit === 7).length,
    stream: await stream(50),
    late: await unary({ crop }, { deadline: Date.now() - 1 }),
  };
  console.log(JSON.stringify(outcomes));
  client.close();
})();
