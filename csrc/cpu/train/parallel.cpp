#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace audiogen_fast {
namespace {

struct Job {
    const std::function<void(std::int64_t)>* work;
    std::int64_t tasks;
    std::atomic<std::int64_t> next{0};
};

void take(void* argument) {
    auto* job = static_cast<Job*>(argument);
    for (std::int64_t i = job->next++; i < job->tasks; i = job->next++) (*job->work)(i);
}

// The entry point that GCC compiles `#pragma omp parallel` to; libomp and libiomp5 have it too.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// Of the OpenMP library that is loaded already, which is torch's. A second team of threads would
// wait for the processor while torch's threads spin after their own work.
Parallel find_openmp() {
#if defined(__linux__)
    for (const char* name : {"libgomp.so.1", "libiomp5.so", "libomp.so"}) {
        if (void* library = dlopen(name, RTLD_NOW | RTLD_NOLOAD)) {
            if (void* symbol = dlsym(library, "GOMP_parallel")) {
                return reinterpret_cast<Parallel>(symbol);
            }
        }
    }
#endif
    return nullptr;
}

}  // namespace

void parallel(int threads, std::int64_t tasks, const std::function<void(std::int64_t)>& work) {
    Job job{&work, tasks};
    const auto wanted = static_cast<unsigned>(std::clamp<std::int64_t>(tasks, 1, threads));
    if (wanted == 1) return take(&job);
    static const Parallel openmp = find_openmp();
    if (openmp) return openmp(take, &job, wanted, 0);
    std::vector<std::thread> helpers;
    try {
        for (unsigned i = 1; i < wanted; ++i) helpers.emplace_back(take, &job);
    } catch (const std::system_error&) {
        // Those that could be started, and this one, do all of the work.
    }
    take(&job);
    for (std::thread& helper : helpers) helper.join();
}

}  // namespace audiogen_fast
