/* SPDX-License-Identifier: Apache-2.0 */
/* store/manifest.h - how moepack.json is sealed.
 *
 * The text of the manifest ends in "\n}\n". The seal takes that off and puts a last
 * member in its place: the digest of the text as it was. */
#ifndef MP_STORE_MANIFEST_H
#define MP_STORE_MANIFEST_H

#define MP_SEAL_CUT    "\n}\n"
#define MP_SEAL_BEFORE ",\n  \"xxh3\": \""
#define MP_SEAL_AFTER  "\"\n}\n"

#endif
