/* Answers the instructions CPUID and XGETBV of patched libraries as another processor would; see claimed.py.
 *
 * A patched library raises SIGILL where it asks: `ud2` (0f 0b) stands for CPUID, `ud0 edx, eax` (0f ff d0) for XGETBV.
 * Any other illegal instruction ends the process and names it: the processor claimed to have what this one has not. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

struct model {
    const char *name, *vendor, *brand;
    uint32_t signature, cache_l2, leaf7_ebx, leaf7_ecx, leaf7_edx, leaf7_1_eax, xcr0;
};

/* Intel: software developer's manual, volume 2A, CPUID. Foundation, DQ, CD, BW, VL; BMI, AVX2, ERMS beside them. */
#define AVX512 0xd09f07a9u
static const struct model models[] = {
    {"haswell", "GenuineIntel", "Intel(R) Xeon(R) CPU E5-2680 v3 @ 2.50GHz", 0x000306f2, 0x01c0003f, 0x000007a9, 0, 0, 0,
     0x7},
    {"skylake-avx512", "GenuineIntel", "Intel(R) Xeon(R) Platinum 8168 CPU @ 2.70GHz", 0x00050654, 0x03c0003f, AVX512, 0,
     0, 0, 0xe7},
    {"cascadelake", "GenuineIntel", "Intel(R) Xeon(R) Platinum 8280 CPU @ 2.70GHz", 0x00050657, 0x03c0003f, AVX512,
     0x800, 0, 0, 0xe7},
    {"icelake-server", "GenuineIntel", "Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz", 0x000606a6, 0x04c0003f,
     AVX512 | 1u << 21 | 1u << 29, 0x5f42, 0, 0, 0xe7},
    /* AVX512-FP16, AVX-VNNI, AVX512-BF16, AMX. */
    {"sapphirerapids", "GenuineIntel", "Intel(R) Xeon(R) Platinum 8480+", 0x000806f8, 0x07c0003f,
     AVX512 | 1u << 21 | 1u << 29, 0x5f42, 0x03c00000, 0x30, 0x600e7},
    {"znver4", "AuthenticAMD", "AMD EPYC 9554 64-Core Processor", 0x00a10f11, 0x01c0003f, AVX512 | 1u << 21 | 1u << 29,
     0x5f42, 0, 0x20, 0xe7},
};
static const struct model *model;

static void answer(uint32_t leaf, uint32_t sub, uint32_t out[4]) {
    const int intel = model->vendor[0] == 'G';
    uint32_t a = 0, b = 0, c = 0, d = 0;
    __cpuid_count(leaf, sub, a, b, c, d);
    if (leaf == 0) {
        a = intel ? 0x16 : 0x10;
        if (model->xcr0 & 0x60000) a = 0x1e;
        memcpy(&b, model->vendor, 4);
        memcpy(&d, model->vendor + 4, 4);
        memcpy(&c, model->vendor + 8, 4);
    } else if (leaf == 1) {
        a = model->signature;
    } else if (leaf == 2) {
        a = intel ? 0x76036301 : 0, b = intel ? 0x00f0b5ff : 0, c = 0, d = intel ? 0x00c30000 : 0;
    } else if (leaf == 4) {
        /* L1 data and instructions of 32 KiB, L2 as the model has, L3 of 16 MiB in 16 ways. */
        static const uint32_t level[4][4] = {{0x1c004121, 0x01c0003f, 0x3f, 0}, {0x1c004122, 0x01c0003f, 0x3f, 0},
                                             {0x1c004143, 0, 0x3ff, 0}, {0x1c03c163, 0x03c0003f, 0x3fff, 4}};
        a = b = c = d = 0;
        if (intel && sub < 4) {
            a = level[sub][0], b = sub == 2 ? model->cache_l2 : level[sub][1], c = level[sub][2], d = level[sub][3];
        }
    } else if (leaf == 7) {
        const uint32_t kept = 1u | 1u << 18 | 1u << 19 | 1u << 20 | 1u << 23 | 1u << 24;  /* FSGSBASE, RDSEED, ADX ... */
        a = sub ? (sub == 1 ? model->leaf7_1_eax : 0) : 1;
        b = sub ? 0 : (b & kept) | model->leaf7_ebx;
        c = sub ? 0 : model->leaf7_ecx;
        d = sub ? 0 : model->leaf7_edx;
    } else if (leaf == 0xd && (model->xcr0 & 0xe0)) {
        /* Where the parts of the state lie: vectors' upper halves, masks, the wider and the additional registers. */
        static const uint32_t part[][3] = {{2, 256, 576}, {5, 64, 1088}, {6, 512, 1152}, {7, 1024, 1664},
                                           {17, 64, 2752}, {18, 8192, 2816}};
        if (sub == 0) a = model->xcr0, b = c = model->xcr0 & 0x60000 ? 11008 : 2688, d = 0;
        else if (sub == 1) a = 0xf, b = 2432, c = d = 0;
        else {
            a = b = c = d = 0;
            for (unsigned i = 0; i < sizeof part / sizeof *part; i++)
                if (part[i][0] == sub && (model->xcr0 >> sub & 1)) a = part[i][1], b = part[i][2];
        }
    } else if (leaf == 0x1d) {
        a = sub == 0, b = c = d = 0;
        if (sub == 1) a = 0x04002000, b = 0x00080040, c = 0x10;
    } else if (leaf == 0x1e) {
        a = c = d = 0, b = 0x4010;
    } else if (leaf == 0x80000000u && intel) {
        a = 0x80000008u, b = c = d = 0;
    } else if (leaf == 0x80000001u && intel) {
        a = b = 0, c = 0x121, d = 0x2c100800;
    } else if (leaf >= 0x80000002u && leaf <= 0x80000004u) {
        char brand[48] = {0};
        strncpy(brand, model->brand, sizeof brand - 1);
        memcpy(out, brand + 16 * (leaf - 0x80000002u), 16);
        return;
    } else if (leaf == 0x80000006u && intel) {
        a = b = d = 0, c = 0x01006040;
    } else if (intel && (leaf > 0x80000008u || (leaf < 0x80000000u && leaf > 0x16 && leaf < 0x40000000u))) {
        a = b = c = d = 0;
    }
    out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}

static void asked(int number, siginfo_t *info, void *context) {
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *at = (const unsigned char *)r[REG_RIP];
    if (at[0] == 0x0f && at[1] == 0x0b) {
        uint32_t out[4];
        answer((uint32_t)r[REG_RAX], (uint32_t)r[REG_RCX], out);
        r[REG_RAX] = out[0], r[REG_RBX] = out[1], r[REG_RCX] = out[2], r[REG_RDX] = out[3];
        r[REG_RIP] += 2;
        return;
    }
    if (at[0] == 0x0f && at[1] == 0xff && at[2] == 0xd0) {
        r[REG_RAX] = (uint32_t)r[REG_RCX] == 0 ? model->xcr0 : 0, r[REG_RDX] = 0;
        r[REG_RIP] += 3;
        return;
    }
    Dl_info where = {0};
    dladdr(at, &where);
    char line[512];
    const char *file = where.dli_fname ? where.dli_fname : "code that was made at run time";
    int n = snprintf(line, sizeof line, "illegal instruction %02x%02x%02x%02x%02x%02x%02x%02x in %s (%s)\n", at[0], at[1],
                     at[2], at[3], at[4], at[5], at[6], at[7], strrchr(file, '/') ? strrchr(file, '/') + 1 : file,
                     where.dli_sname ? where.dli_sname : "no symbol");
    if (write(2, line, n)) {}
    (void)number, (void)info;
    _exit(86);
}

/* Nobody else, such as Python's faulthandler, takes the signal. */
int sigaction(int number, const struct sigaction *new, struct sigaction *old) {
    static int (*next)(int, const struct sigaction *, struct sigaction *);
    if (!next) next = dlsym(RTLD_NEXT, "sigaction");
    if (number == SIGILL && new && !(new->sa_flags & SA_SIGINFO && new->sa_sigaction == asked)) {
        if (old) memset(old, 0, sizeof *old);
        return 0;
    }
    return next(number, new, old);
}

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("CLAIMED_PROCESSOR");
    for (unsigned i = 0; name && i < sizeof models / sizeof *models; i++)
        if (!strcmp(models[i].name, name)) model = models + i;
    if (!model) {
        fprintf(stderr, "CLAIMED_PROCESSOR=%s is none of those known\n", name ? name : "");
        _exit(2);
    }
    struct sigaction action = {.sa_sigaction = asked, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGILL, &action, NULL);
}
