/* SPDX-License-Identifier: MIT */
/* Any bytes as the TCP options of a spliced connection's packet, edited there and back. */
#include "bpf/options.bpf.h"
#include "pieces.h"

#define SIZE MPROX_OPTIONS_MAX

static uint32_t number_at(const uint8_t *byte)
{
	return (uint32_t)byte[0] << 24 | (uint32_t)byte[1] << 16 | (uint32_t)byte[2] << 8 | byte[3];
}

static void add(uint8_t *byte, uint32_t delta)
{
	uint32_t number = number_at(byte) + delta;

	for (int i = 3; i >= 0; i--, number >>= 8)
		byte[i] = (uint8_t)number;
}

/* The same by RFC 9293, 7323 and 2018, as plainly as can be. */
static void reference(uint8_t *option, const uint8_t *end, struct edit *edit)
{
	while (option < end && option[0] != 0) {
		uint8_t size;

		if (option[0] == 1) {
			option++;
			continue;
		}
		if (end - option < 2)
			return;
		size = option[1];
		if (size < 2 || size > end - option)
			return;
		if (option[0] == 8 && size == 10) {
			edit->found = number_at(option + 2);
			add(option + 2, edit->timestamp);
			add(option + 6, edit->echo);
		}
		if (option[0] == 5 && (size == 2 + 8 || size == 2 + 16 || size == 2 + 24 || size == 2 + 32))
			for (uint8_t *edge = option + 2; edge < option + size; edge += 4)
				add(edge, edit->acknowledgement);
		option += size;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct edit forth = {0}, back, expected;
	uint8_t before[SIZE] = {0}, after[SIZE];
	uint32_t option[OPTION_WORDS], words;

	/* Three numbers to add, and the options, in whole words. */
	if (size < 12)
		return 0;
	forth.acknowledgement = number_at(data);
	forth.timestamp = number_at(data + 4);
	forth.echo = number_at(data + 8);
	data += 12;
	size -= 12;
	words = (uint32_t)((size < SIZE ? size : SIZE) + 3) / 4;
	memcpy(before, data, size < SIZE ? size : SIZE);

	memcpy(option, before, SIZE);
	memcpy(after, before, SIZE);
	expected = forth;
	back = (struct edit){-forth.acknowledgement, -forth.timestamp, -forth.echo, 0};
	edit_options(option, words, &forth);
	reference(after, after + words * 4, &expected);
	REQUIRE(!memcmp(option, after, SIZE));
	REQUIRE(forth.found == expected.found);

	edit_options(option, words, &back);
	REQUIRE(!memcmp(option, before, SIZE));
	return 0;
}
