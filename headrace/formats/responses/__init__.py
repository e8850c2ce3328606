"""OpenAI's Responses API: https://platform.openai.com/docs/api-reference/responses, and https://www.openresponses.org.

Both were read in 2026-11.
"""
