// What users of OpenAI's JavaScript client do, against the server at argv[2]. Prints one JSON object; tests/server/test_node_client.py
// reads it.
import OpenAI from 'openai';

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: 'EMPTY', maxRetries: 0 });
const model = 'lynx-nano';
const messages = [{ role: 'user', content: '12 times 22 = ?' }];
const found = {};

const answer = await client.chat.completions.create({ model, messages, temperature: 0 });
found.content = answer.choices[0].message.content;
found.extra = answer.lynx.policy;

let text = '';
let usage = null;
for await (const chunk of await client.chat.completions.create({
  model, messages, temperature: 0, stream: true, stream_options: { include_usage: true },
})) {
  text += chunk.choices[0]?.delta?.content ?? '';
  usage = chunk.usage ?? usage;
}
found.streamed = text;
found.usage = usage.completion_tokens;

const runner = client.chat.completions.stream({ model, messages, temperature: 0 });
found.helper = await runner.finalContent();

try {
  await client.chat.completions.create({ model, messages, temperature: -1 });
} catch (error) {
  found.error = { name: error.constructor.name, status: error.status, param: error.param, message: error.message };
}

const schema = { type: 'object', properties: { a: { type: 'integer' } }, required: ['a'], additionalProperties: false };
const formed = await client.chat.completions.create({
  model, messages, temperature: 0, response_format: { type: 'json_schema', json_schema: { name: 'x', schema } },
});
found.formed = typeof JSON.parse(formed.choices[0].message.content).a;

const tools = [{ type: 'function', function: { name: 'add', parameters: schema } }];
const called = await client.chat.completions.create({
  model, messages, temperature: 0, tools, tool_choice: { type: 'function', function: { name: 'add' } },
});
found.called = called.choices[0].message.tool_calls[0].function.name;

found.models = [];
for await (const item of client.models.list()) found.models.push(item.id);
found.retrieved = (await client.models.retrieve(model)).id;
found.completion = (await client.completions.create({ model, prompt: 'Q: 12 times 22 = ?\nA:', temperature: 0 })).choices[0].text;
const response = await client.responses.create({ model, input: '12 times 22 = ?', temperature: 0 });
found.response = response.output_text;

const endless = await client.chat.completions.create({ model, messages, stream: true, max_tokens: 900, ignore_eos: true });
for await (const chunk of endless) break; // leaves the stream early
console.log(JSON.stringify(found));
