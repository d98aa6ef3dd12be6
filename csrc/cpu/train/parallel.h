// Work of training ops on the threads that torch computes with.
#pragma once

#include <cstdint>
#include <functional>

namespace audiogen_fast {

// Calls work(0) ... work(tasks - 1), each once, on up to `threads` threads, and waits for all. Which
// thread takes which task is not fixed. `work` must not throw.
void parallel(int threads, std::int64_t tasks, const std::function<void(std::int64_t)>& work);

}  // namespace audiogen_fast
