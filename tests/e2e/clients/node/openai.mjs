// OpenAI's own client for Node with the Responses API. The test beside it says what each model answers.
import assert from 'node:assert/strict'

import OpenAI, { BadRequestError, NotFoundError } from 'openai'
import { zodTextFormat } from 'openai/helpers/zod'
import { z } from 'zod'

const { URL, KEY, MODEL } = process.env
const client = new OpenAI({ baseURL: URL, apiKey: KEY, maxRetries: 0 })
const weather = { type: 'function', name: 'weather', parameters: { type: 'object' }, strict: false }

async function chain() {
  const model = `${MODEL}-chain`
  const first = await client.responses.create({ model, input: 'Weather?', instructions: 'Be brief.' })
  assert.equal(first.output_text, 'Rain.')
  assert.equal((await client.responses.retrieve(first.id)).output_text, 'Rain.')
  const stream = client.responses.stream({ model, input: 'A coat?', previous_response_id: first.id, tools: [weather] })
  let text = ''
  stream.on('response.output_text.delta', (event) => { text += event.delta })
  const second = await stream.finalResponse()
  assert.equal(text, 'I look it up.')
  assert.equal(second.output_text, text)
  const [, call] = second.output
  assert.deepEqual([call.type, call.call_id, call.name, call.arguments], ['function_call', 'call_0', 'weather', '{"city": "Ulm"}'])
  const third = await client.responses.create({
    model,
    previous_response_id: second.id,
    input: [{ type: 'function_call_output', call_id: call.call_id, output: 'rain' }],
  })
  assert.equal(third.output_text, 'Yes.')
  const kinds = []
  for await (const item of client.responses.inputItems.list(third.id, { order: 'asc', limit: 2 })) kinds.push(item.type)
  assert.deepEqual(kinds, ['message', 'message', 'message', 'message', 'function_call', 'function_call_output'])
  await client.responses.delete(first.id)
  await assert.rejects(client.responses.retrieve(first.id), NotFoundError)
}

async function resume() {
  const seen = []
  let id
  const stream = await client.responses.create({ model: `${MODEL}-resume`, input: 'Count.', background: true, stream: true })
  for await (const event of stream) {
    id ??= event.response.id
    seen.push(event)
    if (event.type === 'response.output_text.delta') break
  }
  const last = seen.at(-1).sequence_number
  for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: last })) seen.push(event)
  assert.deepEqual(seen.map((event) => event.sequence_number), [...seen.keys()])
  const helper = client.responses.stream({ response_id: id, starting_after: last })
  assert.equal((await helper.finalResponse()).output_text, 'one two three four five six')
}

async function cancel() {
  const { id } = await client.responses.create({ model: `${MODEL}-cancel`, input: 'Wait.', background: true })
  assert.equal((await client.responses.cancel(id)).status, 'cancelled')
}

async function parse() {
  const Recipe = z.object({ name: z.string(), steps: z.array(z.string()) })
  const { output_parsed: recipe } = await client.responses.parse({
    model: 'demo', input: 'A recipe, please.', text: { format: zodTextFormat(Recipe, 'recipe') },
  })
  Recipe.parse(recipe)
}

async function conversation() {
  const model = `${MODEL}-conversation`
  const { id } = await client.conversations.create({ metadata: { topic: 'weather' } })
  for (const input of ['Weather?', 'A coat?']) await client.responses.create({ model, input, conversation: id })
  const texts = []
  for await (const item of client.conversations.items.list(id, { order: 'asc' })) texts.push(item.content[0].text)
  assert.deepEqual(texts, ['Weather?', 'Rain.', 'A coat?', 'Yes.'])
  await client.conversations.delete(id)
}

async function refusal() {
  await assert.rejects(
    client.responses.create({ model: MODEL, input: 'Hello.', previous_response_id: `resp_${'0'.repeat(32)}` }),
    (error) => error instanceof BadRequestError && error.code === 'previous_response_not_found',
  )
}

for (const scenario of [chain, resume, cancel, parse, conversation, refusal]) await scenario()
