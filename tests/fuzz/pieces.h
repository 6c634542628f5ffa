/* SPDX-License-Identifier: MIT */
/* Feeding a machine in pieces, and what must hold at every feed. */
#ifndef FUZZ_PIECES_H
#define FUZZ_PIECES_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/mproto.h"

#define REQUIRE(condition)                                                                 \
	do {                                                                               \
		if (!(condition)) {                                                        \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);   \
			abort();                                                           \
		}                                                                          \
	} while (0)

#define SENT_MAX 8192 /* no conversation sends more */

struct run {
	enum mproto_progress progress;
	size_t consumed;
	size_t sent_len;
	uint8_t sent[SENT_MAX];
};

typedef enum mproto_progress (*feed_function)(void *machine, const uint8_t *in, size_t in_len, size_t *consumed,
					      uint8_t out[MPROTO_OUT_MAX], size_t *out_len);

/* Pieces of 1..16 bytes in an order that `cuts` decides; 0: everything at once. */
static inline void run_in_pieces(struct run *run, feed_function feed, void *machine, const uint8_t *in, size_t len,
				 uint32_t cuts)
{
	size_t end = cuts ? 0 : len;

	run->progress = MPROTO_MORE;
	run->consumed = 0;
	run->sent_len = 0;
	for (;;) {
		uint8_t out[MPROTO_OUT_MAX];
		size_t consumed = SIZE_MAX, out_len = SIZE_MAX, piece;
		uint8_t *copy;

		if (run->consumed == end && end < len) {
			cuts = cuts * 1664525u + 1013904223u;
			end += 1 + (cuts >> 28);
			end = end < len ? end : len;
		}
		piece = end - run->consumed;
		if (!piece)
			return;
		/* A copy of exactly this size, so that a read past it is seen. */
		copy = malloc(piece);
		REQUIRE(copy);
		memcpy(copy, in + run->consumed, piece);
		run->progress = feed(machine, copy, piece, &consumed, out, &out_len);
		free(copy);
		REQUIRE(out_len <= MPROTO_OUT_MAX);
		REQUIRE(consumed <= piece);
		REQUIRE(run->sent_len + out_len <= SENT_MAX);
		memcpy(run->sent + run->sent_len, out, out_len);
		run->sent_len += out_len;
		run->consumed += consumed;
		if (run->progress != MPROTO_MORE)
			return;
		REQUIRE(consumed == piece || out_len); /* what is left over waits for something to be sent */
		REQUIRE(consumed);
	}
}

static inline void require_same(const struct run *a, const struct run *b)
{
	REQUIRE(a->progress == b->progress);
	REQUIRE(a->consumed == b->consumed);
	REQUIRE(a->sent_len == b->sent_len);
	REQUIRE(!memcmp(a->sent, b->sent, a->sent_len));
}

static inline void set_text(char *out, uint8_t *out_len, const char *text)
{
	*out_len = (uint8_t)strlen(text);
	memcpy(out, text, *out_len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
