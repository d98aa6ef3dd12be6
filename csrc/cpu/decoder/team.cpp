#include "team.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace audiogen_fast {
namespace {

inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#endif
}

// Spins before giving the processor away: about as long as a phase of a well-fed team takes. A team
// larger than the machine has nothing to spin for.
constexpr int kSpins = 4000;

}  // namespace

Team::Team(int threads)
    : size_(threads < 1 ? 1 : threads),
      oversubscribed_(static_cast<unsigned>(size_) > std::thread::hardware_concurrency()) {
    for (int rank = 1; rank < size_; ++rank) threads_.emplace_back(&Team::loop, this, rank);
}

Team::~Team() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Team::run(const std::function<void(int)>& work) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        work_ = &work;
        running_ = size_ - 1;
        ++generation_;
    }
    wake_.notify_all();
    work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return running_ == 0; });
}

void Team::loop(int rank) {
    std::uint64_t seen = 0;
    while (true) {
        const std::function<void(int)>* work = nullptr;
        {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
            if (stop_) return;
            seen = generation_;
            work = work_;
        }
        (*work)(rank);
        const std::lock_guard<std::mutex> lock(mutex_);
        if (--running_ == 0) done_.notify_one();
    }
}

void Team::barrier() {
    if (size_ == 1) return;
    const std::uint64_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    int spins = oversubscribed_ ? kSpins : 0;
    while (phase_.load(std::memory_order_acquire) == phase) {
        pause();
        if (++spins > kSpins) std::this_thread::yield();
    }
}

}  // namespace audiogen_fast
