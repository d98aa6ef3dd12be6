// A team of threads that runs one function many times, with barriers between its phases.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace audiogen_fast {

// The threads sleep between calls of `run` and spin inside them: a decode step has hundreds of
// phases of a few dozen microseconds, too short to be woken up for.
class Team {
public:
    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }
    // Calls work(rank) on every thread, rank 0 being the caller, and waits for all. An exception of
    // rank 0 may only be thrown where no other rank waits for it. In a process that was forked the
    // threads are not there, and this throws.
    void run(const std::function<void(int)>& work);
    // To be called by every thread of the team: none goes on before all have arrived.
    void barrier();

private:
    struct Gate {
        std::mutex mutex;
        std::condition_variable wake, done;
    };

    void loop(int rank);
    void end();

    const int size_;
    const bool oversubscribed_;
    const long process_;
    std::vector<std::thread> threads_;
    std::unique_ptr<Gate> gate_;
    const std::function<void(int)>* work_ = nullptr;
    std::uint64_t generation_ = 0;
    int running_ = 0;
    bool stop_ = false;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<std::uint64_t> phase_{0};
};

}  // namespace audiogen_fast
