/* SPDX-License-Identifier: MIT */
#ifndef ABI_C_TEST_H
#define ABI_C_TEST_H

#ifdef __cplusplus
extern "C" {
#endif

/* The condition that did not hold; NULL when all did. */
const char *c_conversation(void);

#ifdef __cplusplus
}
#endif
#endif
