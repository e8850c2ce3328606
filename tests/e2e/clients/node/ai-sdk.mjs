// Vercel's AI SDK with its default OpenAI model, which speaks the Responses API. The test beside it says what each
// model answers.
import assert from 'node:assert/strict'

import { createOpenAI } from '@ai-sdk/openai'
import { generateText, isStepCount, Output, streamText, tool } from 'ai'
import { z } from 'zod'

const { URL, KEY, MODEL } = process.env
const openai = createOpenAI({ baseURL: URL, apiKey: KEY })
const weather = tool({
  description: 'The weather of a city.',
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `rain in ${city}`,
})
const agent = { tools: { weather }, stopWhen: isStepCount(5), maxRetries: 0, instructions: 'Be brief.' }

// Where the service stores responses the SDK refers to earlier items by their ids; with `store: false` it sends them.
async function loop(name, store) {
  const model = openai(`${MODEL}-${name}`)
  const providerOptions = { openai: { store } }
  const messages = [{ role: 'user', content: 'A coat?' }]
  const first = await generateText({ ...agent, model, messages, providerOptions })
  assert.equal(first.text, 'Take a coat.')
  assert.equal(first.steps.length, 2)
  messages.push(...first.responseMessages, { role: 'user', content: 'Only a coat?' })
  const second = streamText({ ...agent, model, messages, providerOptions })
  let text = ''
  for await (const piece of second.textStream) text += piece
  assert.equal(text, 'And warm boots.')
  assert.equal((await second.usage).totalTokens > 0, true)
}

async function chain() {
  const model = openai(`${MODEL}-chain`)
  const first = await generateText({ ...agent, model, prompt: 'A coat?' })
  const { responseId } = first.finalStep.providerMetadata.openai
  const providerOptions = { openai: { previousResponseId: responseId } }
  assert.equal((await generateText({ ...agent, model, prompt: 'Only a coat?', providerOptions })).text, 'And boots.')
}

async function typed() {
  const output = Output.object({ schema: z.object({ coat: z.boolean(), reason: z.string() }) })
  const result = await generateText({ model: openai('demo'), maxRetries: 0, output, prompt: 'A coat?' })
  assert.equal(typeof result.output.coat, 'boolean')
}

await loop('stored', true)
await loop('stateless', false)
await chain()
await typed()
