/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as one safetensors file: refused with a message, or its tensors tile its data
 * and its header is JSON to a parser that sees it whole. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <moepack/store.h>

#include "fuzz.h"

static void check_tensors(const mp_checkpoint *ckpt)
{
    const mp_shard *shard = &ckpt->shards[0];
    uint64_t bytes = 0;
    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        const mp_tensor *t = &ckpt->tensors[i];
        require(t->offset >= shard->header_bytes && t->offset <= shard->size, "offset");
        require(t->bytes <= shard->size - t->offset, "end");
        require(mp_checkpoint_find(ckpt, t->name) == t, "find");
        bytes += t->bytes;
    }
    require(bytes == shard->size - shard->header_bytes, "tiling");
}

static void check_json(const uint8_t *data, uint64_t header_bytes)
{
    json_error_t where;
    json_t *json = json_loadb((const char *)data + 8, (size_t)header_bytes - 8, 0, &where);
    /* Seen whole, the header is one level deeper than its members are. */
    require(json || json_error_code(&where) == json_error_stack_overflow, "header is JSON");
    json_decref(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    mp_error err = {0};
    mp_checkpoint ckpt;
    const mp_context context = {.threads = 1};
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    require(fd >= 0 && write(fd, data, size) == (ssize_t)size, "scratch file");
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int rc = mp_checkpoint_open(&ckpt, path, &context, &err);
    if (rc == 0) {
        check_tensors(&ckpt);
        check_json(data, ckpt.shards[0].header_bytes);
    } else {
        /* A GGUF file is known and not supported. */
        require((rc == MP_ERR_INPUT || rc == MP_ERR_UNSUPPORTED) && err.code == rc &&
                    err.message[0] != '\0',
                "error");
    }
    mp_checkpoint_release(&ckpt);
    close(fd);
    return 0;
}
