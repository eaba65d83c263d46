/* SPDX-License-Identifier: Apache-2.0 */
/* Knows the progress bar and the signals that cancel a run. */
#include "progress.h"

#include "output.h"

#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define REDRAW_SECONDS 0.1
#define LINE_SECONDS   1.0 /* where there is no screen to draw on again */

static int cancel; /* the signal, once there was one */

/* The bar on the screen. */
static struct {
    uint64_t total;
    uint64_t first; /* bytes done when the call began: a resumed run begins late */
    uint64_t last;
    double began;
    double drawn;
    const char *phase;
    bool lines; /* a line each time, since standard error is no screen */
    int width;  /* columns on the screen now */
} bar;

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* "0:32" or "1:02:05". */
static void duration_text(double seconds, char text[32])
{
    uint64_t s = seconds < 360000 ? (uint64_t)(seconds + 0.5) : 360000;

    if (s < 3600)
        snprintf(text, 32, "%" PRIu64 ":%02" PRIu64, s / 60, s % 60);
    else
        snprintf(text, 32, "%" PRIu64 ":%02" PRIu64 ":%02" PRIu64, s / 3600, s / 60 % 60, s % 60);
}

int progress_text(uint64_t done, uint64_t total, uint64_t moved, double seconds, bool bytes,
                  char text[PROGRESS_TEXT])
{
    double rate = seconds > 0 ? (double)moved / seconds : 0;
    /* Rounded down: 100% means done. */
    int percent = total > 0 ? (int)((double)done / (double)total * 100) : 100;
    char left[32];

    if (rate <= 0)
        return snprintf(text, PROGRESS_TEXT, "%3d%%", percent);
    duration_text((double)(total - done) / rate, left);
    if (!bytes)
        return snprintf(text, PROGRESS_TEXT, "%3d%%  %s left", percent, left);
    return snprintf(text, PROGRESS_TEXT, "%3d%%  %.2f GB/s  %s left", percent, rate * 1e-9, left);
}

/* Phases that are counted in layers or tokens. */
static bool counts_bytes(const char *phase)
{
    return strcmp(phase, "balancing") != 0 && strcmp(phase, "multiplying") != 0;
}

static void draw(uint64_t done, uint64_t total, double time)
{
    const char *phase = bar.phase ? bar.phase : "working";
    char text[PROGRESS_TEXT];
    int width =
        progress_text(done, total, done - bar.first, time - bar.began, counts_bytes(phase), text);

    bar.drawn = time;
    if (bar.lines) {
        fprintf(stderr, "%s %s\n", phase, text);
        return;
    }
    width += (int)strlen(phase) + 1;
    /* Blanks cover what a longer line has left behind. */
    fprintf(stderr, "\r%s %s%*s", phase, text, bar.width > width ? bar.width - width : 0, "");
    fflush(stderr);
    bar.width = width;
}

static void show(void *user, uint64_t done, uint64_t total)
{
    double time = now();

    (void)user;
    if (total != bar.total || done < bar.last) {
        bar.total = total;
        bar.first = done;
        bar.began = time;
    }
    bar.last = done;
    if (time - bar.drawn >= (bar.lines ? LINE_SECONDS : REDRAW_SECONDS))
        draw(done, total, time);
}

/* Speed is that of a phase, the part done that of the call. */
static void begin_phase(void *user, const char *name)
{
    (void)user;
    bar.phase = name;
    bar.first = bar.last;
    bar.began = now();
    if (!bar.lines && bar.width > 0)
        draw(bar.last, bar.total, bar.began);
}

void progress_clear(void)
{
    if (bar.width > 0)
        fprintf(stderr, "\r%*s\r", bar.width, "");
    bar.width = 0;
}

static void on_signal(int signal_number)
{
    __atomic_store_n(&cancel, signal_number, __ATOMIC_RELEASE);
}

static void catch_signals(void)
{
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_handler = on_signal;
    action.sa_flags = (int)(SA_RESTART | SA_RESETHAND);
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

int cancel_signal(void)
{
    return __atomic_load_n(&cancel, __ATOMIC_ACQUIRE);
}

void cmd_context(const common_options *common, mp_context *context)
{
    bool wanted = common->progress == WHEN_ALWAYS;

    if (common->progress == WHEN_AUTO)
        wanted = !common->quiet && isatty(STDERR_FILENO);
    catch_signals();
    *context = (mp_context){.threads = common->threads, .io = common->io, .cancel = &cancel};
    bar.lines = !isatty(STDERR_FILENO);
    if (wanted) {
        context->progress = show;
        context->phase = begin_phase;
    }
}
