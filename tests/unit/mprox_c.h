/* SPDX-License-Identifier: MIT */
/* The library seen from C. */
#ifndef MPROX_C_H
#define MPROX_C_H

#ifdef __cplusplus
extern "C" {
#endif

/* Calls every function on `fd`, which is no proxy descriptor. The first that does not fail with `error`; "" if none. */
const char *mprox_c_errors(int fd, int error);

#ifdef __cplusplus
}
#endif
#endif
