/* Preloaded into a process, counts its system calls that change files below a folder, and makes one of them fail.
 *
 *     FAULT_PREFIX  the folder
 *     FAULT_AT      which call, from 1; "3-9" for several in turn; without it nothing fails
 *     FAULT_MODE    kill: SIGKILL instead of it; error:N: errno N; short:N: the first writes half, others fail with N;
 *                   slow:N: N ms before the call
 *     FAULT_CALL    open, stat, read or list: counts calls of this kind, which read only, and no others
 *     FAULT_LOG     a file that takes a line a call: its number, kind and path below the folder
 *
 * The settings are read at the first call of each process, so those that are forked can have their own.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { KILL, ERROR, SHORT, SLOW };

static atomic_int calls;
static pid_t known_pid;
static char prefix[PATH_MAX], only[8];
static size_t prefix_length;
static int first, last, number, log_file;
static enum mode mode;

static void read_settings(void) {
    if (known_pid == getpid()) return;
    known_pid = getpid();
    atomic_store(&calls, 0);
    first = last = number = 0, log_file = -1, mode = KILL;
    const char *folder = getenv("FAULT_PREFIX"), *at = getenv("FAULT_AT"), *how = getenv("FAULT_MODE");
    snprintf(prefix, sizeof prefix, "%s", folder ? folder : "");
    prefix_length = strlen(prefix);
    const char *call = getenv("FAULT_CALL");
    snprintf(only, sizeof only, "%s", call ? call : "");
    if (at) {
        const char *dash = strchr(at, '-');
        first = atoi(at), last = dash ? atoi(dash + 1) : first;
    }
    if (how) {
        const char *colon = strchr(how, ':');
        number = colon ? atoi(colon + 1) : 0;
        mode = *how == 'e' ? ERROR : how[1] == 'h' ? SHORT : how[1] == 'l' ? SLOW : KILL;
    }
    const char *log = getenv("FAULT_LOG");
    if (log) log_file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

static int reads(const char *kind) {
    return !strcmp(kind, "open") || !strcmp(kind, "stat") || !strcmp(kind, "read") || !strcmp(kind, "list");
}

/* Whether this call is to fail with errno `number`, or to do half of its work. */
static enum { GO_ON, FAIL, HALF } look(const char *kind, const char *path) {
    read_settings();
    if (!prefix_length || !path || strncmp(path, prefix, prefix_length)) return GO_ON;
    if (strcmp(only, reads(kind) ? kind : "")) return GO_ON;
    int call = atomic_fetch_add(&calls, 1) + 1;
    if (log_file >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%d %s %s\n", call, kind, path + prefix_length);
        syscall(SYS_write, log_file, line, length);
    }
    if (!first || call < first || call > last) return GO_ON;
    if (mode == SLOW) {
        usleep(number * 1000);
        return GO_ON;
    }
    if (mode == KILL) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    errno = number;
    return mode == SHORT && call == first ? HALF : FAIL;
}

static const char *path_of(int descriptor, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, PATH_MAX - 1);
    if (length < 0) return NULL;
    buffer[length] = 0;
    return buffer;
}

/* The path of a name in an open folder. */
static const char *path_at(int folder, const char *name, char *buffer) {
    if (*name == '/' || folder == AT_FDCWD || !path_of(folder, buffer)) return name;
    size_t length = strlen(buffer);
    snprintf(buffer + length, PATH_MAX - length, "/%s", name);
    return buffer;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, #name)
#define BY_PATH(name, kind, path, types, names) \
    int name types { \
        REAL(int, name, types_of_##name); \
        return look(kind, path) == GO_ON ? real names : -1; \
    }
#define types_of_rename const char *, const char *
#define types_of_renameat int, const char *, int, const char *
#define types_of_unlink const char *
#define types_of_unlinkat int, const char *, int
#define types_of_mkdir const char *, mode_t
#define types_of_rmdir const char *
#define types_of_chmod const char *, mode_t
BY_PATH(rename, "rename", to, (const char *from, const char *to), (from, to))
BY_PATH(renameat, "rename", to, (int a, const char *from, int b, const char *to), (a, from, b, to))
BY_PATH(unlink, "unlink", path, (const char *path), (path))
BY_PATH(unlinkat, "unlink", path, (int folder, const char *path, int flags), (folder, path, flags))
BY_PATH(mkdir, "mkdir", path, (const char *path, mode_t rights), (path, rights))
BY_PATH(rmdir, "rmdir", path, (const char *path), (path))
BY_PATH(chmod, "chmod", path, (const char *path, mode_t rights), (path, rights))

#define BY_DESCRIPTOR(name, kind, types, names, signature) \
    int name types { \
        REAL(int, name, signature); \
        char path[PATH_MAX]; \
        return look(kind, path_of(descriptor, path)) == GO_ON ? real names : -1; \
    }
#define SIGNATURE(...) __VA_ARGS__
BY_DESCRIPTOR(fsync, "fsync", (int descriptor), (descriptor), int)
BY_DESCRIPTOR(fdatasync, "fsync", (int descriptor), (descriptor), int)
BY_DESCRIPTOR(ftruncate, "truncate", (int descriptor, off_t size), (descriptor, size), SIGNATURE(int, off_t))
BY_DESCRIPTOR(ftruncate64, "truncate", (int descriptor, off64_t size), (descriptor, size), SIGNATURE(int, off64_t))
BY_DESCRIPTOR(fchmod, "chmod", (int descriptor, mode_t rights), (descriptor, rights), SIGNATURE(int, mode_t))

#define OPENS(name, types, names, path, folder, ...) \
    int name types { \
        va_list more; \
        va_start(more, flags); \
        mode_t rights = va_arg(more, mode_t); \
        va_end(more); \
        REAL(int, name, __VA_ARGS__, int, ...); \
        char buffer[PATH_MAX]; \
        if (flags & (O_CREAT | O_TRUNC) ? look("create", path) != GO_ON \
                                        : look("open", path_at(folder, path, buffer)) != GO_ON) return -1; \
        return real names; \
    }
OPENS(open, (const char *path, int flags, ...), (path, flags, rights), path, AT_FDCWD, const char *)
OPENS(open64, (const char *path, int flags, ...), (path, flags, rights), path, AT_FDCWD, const char *)
OPENS(openat, (int at, const char *path, int flags, ...), (at, path, flags, rights), path, at, int, const char *)
OPENS(openat64, (int at, const char *path, int flags, ...), (at, path, flags, rights), path, at, int, const char *)

ssize_t write(int descriptor, const void *bytes, size_t length) {
    REAL(ssize_t, write, int, const void *, size_t);
    char path[PATH_MAX];
    switch (look("write", path_of(descriptor, path))) {
    case GO_ON: return real(descriptor, bytes, length);
    case HALF: if (length > 1) return real(descriptor, bytes, length / 2); /* fall through */
    default: errno = number; return -1;
    }
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t length, off64_t at) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    char path[PATH_MAX];
    return look("write", path_of(descriptor, path)) == GO_ON ? real(descriptor, bytes, length, at) : -1;
}

ssize_t writev(int descriptor, const struct iovec *pieces, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    char path[PATH_MAX];
    return look("write", path_of(descriptor, path)) == GO_ON ? real(descriptor, pieces, count) : -1;
}

ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t length, unsigned flags) {
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
    char path[PATH_MAX];
    return look("write", path_of(to, path)) == GO_ON ? real(from, a, to, b, length, flags) : -1;
}

ssize_t read(int descriptor, void *bytes, size_t length) {
    REAL(ssize_t, read, int, void *, size_t);
    read_settings();
    if (strcmp(only, "read")) return real(descriptor, bytes, length); /* the name of the file costs a system call */
    char path[PATH_MAX];
    return look("read", path_of(descriptor, path)) == GO_ON ? real(descriptor, bytes, length) : -1;
}

#define STATS(name, type) \
    int name(int folder, const char *path, struct type *found, int flags) { \
        REAL(int, name, int, const char *, struct type *, int); \
        char buffer[PATH_MAX]; \
        return look("stat", path_at(folder, path, buffer)) == GO_ON ? real(folder, path, found, flags) : -1; \
    }
STATS(fstatat, stat)
STATS(fstatat64, stat64)
BY_DESCRIPTOR(fstat, "stat", (int descriptor, struct stat *found), (descriptor, found), SIGNATURE(int, struct stat *))
BY_DESCRIPTOR(fstat64, "stat", (int descriptor, struct stat64 *found), (descriptor, found), SIGNATURE(int, struct stat64 *))

DIR *opendir(const char *path) {
    REAL(DIR *, opendir, const char *);
    return look("list", path) == GO_ON ? real(path) : NULL;
}
