/* A stand-in for libnvidia-ml.so.1: constant power, a counter that moves every so often.
   FAKE_NVML_COUNT boards (default 1), FAKE_NVML_POWER_W watts each (default 300),
   FAKE_NVML_PERIOD_MS between updates (default 100), FAKE_NVML_READ_US busy with each read (0). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct { unsigned int field, scope; long long at, latency; int type, code;
                 union { double d; unsigned int ui; unsigned long long ull; } value; } field_t;

static double setting(const char *name, double otherwise) {
    const char *text = getenv(name);
    return text ? atof(text) : otherwise;
}
static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
static unsigned int boards(void) { return (unsigned int)setting("FAKE_NVML_COUNT", 1); }

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { (void)code; return "stand-in"; }
int nvmlSystemGetDriverVersion(char *out, unsigned int size) {
    snprintf(out, size, "000.00 stand-in");
    return 0;
}
int nvmlDeviceGetCount_v2(unsigned int *out) { *out = boards(); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **out) {
    if (index >= boards()) return 2;
    *out = (void *)(long)(index + 1);
    return 0;
}
int nvmlDeviceGetIndex(void *board, unsigned int *out) {
    *out = (unsigned int)((long)board - 1);
    return 0;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    unsigned int index;
    if (sscanf(uuid, "GPU-stand-in-%u", &index) != 1) return 6;
    return nvmlDeviceGetHandleByIndex_v2(index, out);
}
int nvmlDeviceGetUUID(void *board, char *out, unsigned int size) {
    snprintf(out, size, "GPU-stand-in-%ld", (long)board - 1);
    return 0;
}
int nvmlDeviceGetName(void *board, char *out, unsigned int size) {
    (void)board;
    snprintf(out, size, "Stand-in");
    return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *board, unsigned long long *out) {
    long long period = (long long)(setting("FAKE_NVML_PERIOD_MS", 100) * 1e6);
    long long updated = now_ns() / period * period;
    long long until = now_ns() + (long long)(setting("FAKE_NVML_READ_US", 0) * 1e3);
    while (now_ns() < until) { }
    *out = 5000000ULL + (unsigned long long)(updated / 1e6 * setting("FAKE_NVML_POWER_W", 300));
    (void)board;
    return 0;
}
int nvmlDeviceGetPowerUsage(void *board, unsigned int *out) {
    (void)board;
    *out = (unsigned int)(setting("FAKE_NVML_POWER_W", 300) * 1000);
    return 0;
}
int nvmlDeviceGetFieldValues(void *board, int count, field_t *fields) {
    for (int i = 0; i < count; i++) {
        fields[i].code = 0;
        nvmlDeviceGetPowerUsage(board, &fields[i].value.ui);
    }
    return 0;
}
