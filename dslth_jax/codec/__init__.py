"""Masks as messages that a link carries, exactly, in about as few bits as they hold."""

from dslth_jax.codec.messages import CodecError, MissingPastError, Receiver, Sender, SentMask, decode, encode

__all__ = ["CodecError", "MissingPastError", "Receiver", "Sender", "SentMask", "decode", "encode"]
