/* STREAM's copy (c[i] = a[i]) on each of N threads at once: what `gcc -O3 -march=native` and the C library make of it.
   Usage: host_stream MIB_PER_ARRAY THREADS ROUNDS. Prints GB/s of each round, bytes read plus bytes written. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static size_t words;
static int rounds;
static pthread_barrier_t gate;
static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static void copy(double *restrict to, const double *restrict from, size_t count) {
    for (size_t i = 0; i < count; i++) to[i] = from[i];
}

static double *array(void) {
    size_t bytes = words * sizeof(double);
    double *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) { perror("mmap"); exit(1); }
    madvise(at, bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < words; i++) at[i] = (double)i;
    return at;
}

static void *work(void *first) {
    double *from = array(), *to = array();
    for (int round = 0; round < rounds; round++) {
        pthread_barrier_wait(&gate);
        copy(to, from, words);
        pthread_barrier_wait(&gate);
    }
    if (to[words / 2] != from[words / 2]) exit(1);
    return first;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    words = (size_t)atol(argv[1]) << 17;
    int threads = atoi(argv[2]);
    rounds = atoi(argv[3]);
    pthread_barrier_init(&gate, NULL, threads + 1);
    pthread_t ids[256];
    if (threads < 1 || threads > 256) return 2;
    for (int i = 0; i < threads; i++) pthread_create(&ids[i], NULL, work, NULL);
    for (int round = 0; round < rounds; round++) {
        pthread_barrier_wait(&gate);
        double started = seconds();
        pthread_barrier_wait(&gate);
        double took = seconds() - started;
        printf("stream copy %.3f GB/s\n", 2.0 * words * sizeof(double) * threads / took / 1e9);
    }
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    return 0;
}
