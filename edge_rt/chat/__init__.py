"""Conversations to prompts: chat templates in a sandbox that bounds time and memory."""
