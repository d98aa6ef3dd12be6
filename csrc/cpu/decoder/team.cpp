#include "team.h"

#include <stdexcept>
#include <string>
#include <system_error>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
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

long process_id() {
#if defined(__unix__) || defined(__APPLE__)
    return static_cast<long>(getpid());
#else
    return 0;  // nothing forks
#endif
}

// Spins before giving the processor away: about as long as a phase of a well-fed team takes. A team
// larger than the machine has nothing to spin for.
constexpr int kSpins = 4000;

}  // namespace

Team::Team(int threads)
    : size_(threads < 1 ? 1 : threads),
      oversubscribed_(static_cast<unsigned>(size_) > std::thread::hardware_concurrency()),
      process_(process_id()),
      gate_(std::make_unique<Gate>()) {
    try {
        for (int rank = 1; rank < size_; ++rank) threads_.emplace_back(&Team::loop, this, rank);
    } catch (const std::system_error& error) {
        end();
        throw std::invalid_argument("threads must be fewer: only " +
                                    std::to_string(threads_.size() + 1) + " of " +
                                    std::to_string(size_) + " could be started (" + error.what() +
                                    ")");
    }
}

Team::~Team() {
    if (process_id() == process_) {
        end();
        return;
    }
    // The threads are those of the parent: nothing here could wait for them, and a condition
    // variable that they sleep on would wait for them when it is destroyed.
    for (std::thread& thread : threads_) thread.detach();
    static_cast<void>(gate_.release());
}

void Team::end() {
    {
        const std::lock_guard<std::mutex> lock(gate_->mutex);
        stop_ = true;
    }
    gate_->wake.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Team::run(const std::function<void(int)>& work) {
    if (process_id() != process_) {
        throw std::runtime_error("the engine's threads are not there in a forked process");
    }
    {
        const std::lock_guard<std::mutex> lock(gate_->mutex);
        work_ = &work;
        running_ = size_ - 1;
        ++generation_;
    }
    gate_->wake.notify_all();
    work(0);
    std::unique_lock<std::mutex> lock(gate_->mutex);
    gate_->done.wait(lock, [this] { return running_ == 0; });
}

void Team::loop(int rank) {
    std::uint64_t seen = 0;
    while (true) {
        const std::function<void(int)>* work = nullptr;
        {
            std::unique_lock<std::mutex> lock(gate_->mutex);
            gate_->wake.wait(lock, [&] { return stop_ || generation_ != seen; });
            if (stop_) return;
            seen = generation_;
            work = work_;
        }
        (*work)(rank);
        const std::lock_guard<std::mutex> lock(gate_->mutex);
        if (--running_ == 0) gate_->done.notify_one();
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
