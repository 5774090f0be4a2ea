/* A libnvidia-ml.so.1 with two GPUs, for machines without one: the real binding runs, the numbers come from here.
 *
 * GPU 0 supports everything. GPU 1 has no power readings (NOT_SUPPORTED) and is lost while the file at FAKE_NVML_LOST
 * exists. FAKE_NVML_PID is a process on GPU 0, FAKE_NVML_PID_1 one on GPU 1, FAKE_NVML_UTILISATION is that of both.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
enum { CARDS = 2 };
static const unsigned long long GIB = 1024ULL * 1024 * 1024;

typedef struct { unsigned int gpu, memory; } Utilization;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } Process;

static int cards[CARDS] = {0, 1};
static unsigned long long asked = 0;

static int of(void *handle) { return *(int *)handle; }
static int lost(void *handle) {
    const char *path = getenv("FAKE_NVML_LOST");
    return of(handle) == 1 && path != NULL && access(path, F_OK) == 0;
}
static unsigned int number(const char *name, unsigned int otherwise) {
    const char *text = getenv(name);
    return text == NULL || !*text ? otherwise : (unsigned int)strtoul(text, NULL, 10);
}

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { return error == GPU_IS_LOST ? "GPU is lost" : "Not Supported"; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = CARDS; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
    if (index >= CARDS) return INVALID_ARGUMENT;
    *handle = &cards[index];
    return SUCCESS;
}
int nvmlDeviceGetName(void *handle, char *name, unsigned int length) {
    snprintf(name, length, of(handle) ? "Fake B" : "Fake A");
    return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(void *handle, Utilization *rates) {
    if (lost(handle)) return GPU_IS_LOST;
    rates->gpu = number("FAKE_NVML_UTILISATION", 90 - 50 * (unsigned int)of(handle));
    rates->memory = 20;
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    if (lost(handle)) return GPU_IS_LOST;
    memory->total = 24 * GIB; memory->used = 20 * GIB; memory->free = 4 * GIB;
    return SUCCESS;
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned int *milliwatts) {
    if (lost(handle)) return GPU_IS_LOST;
    if (of(handle) == 1) return NOT_SUPPORTED;
    *milliwatts = 300000;
    return SUCCESS;
}
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *millijoules) {
    if (lost(handle)) return GPU_IS_LOST;
    if (of(handle) == 1) return NOT_SUPPORTED;
    *millijoules = 1000000 + 300000 * asked++;
    return SUCCESS;
}
int nvmlDeviceGetTemperature(void *handle, unsigned int sensor, unsigned int *celsius) {
    (void)sensor;
    if (lost(handle)) return GPU_IS_LOST;
    *celsius = 61;
    return SUCCESS;
}
int nvmlDeviceGetClockInfo(void *handle, unsigned int clock, unsigned int *mhz) {
    (void)clock;
    if (lost(handle)) return GPU_IS_LOST;
    *mhz = 1410;
    return SUCCESS;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *reasons) {
    if (lost(handle)) return GPU_IS_LOST;
    *reasons = of(handle) == 0 ? 0x4 : 0x0; /* SwPowerCap */
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned int *count, Process *processes) {
    unsigned int pid = number(of(handle) ? "FAKE_NVML_PID_1" : "FAKE_NVML_PID", 0);
    if (lost(handle)) return GPU_IS_LOST;
    if (pid == 0) { *count = 0; return SUCCESS; }
    if (processes == NULL || *count < 1) { *count = 1; return INSUFFICIENT_SIZE; }
    memset(processes, 0, sizeof *processes);
    processes[0].pid = pid;
    processes[0].used = GIB;
    *count = 1;
    return SUCCESS;
}
