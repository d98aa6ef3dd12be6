// Large aligned memory.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace audiogen_fast {

// Zeroed memory, aligned to a cache line; in huge pages where it is big and the system has them,
// because a step streams through all of it.
class Buffer {
public:
    Buffer() = default;
    explicit Buffer(std::size_t bytes) : bytes_(bytes) {
        if (bytes == 0) return;
        constexpr std::size_t kHuge = std::size_t{1} << 21;
        const std::size_t alignment = bytes >= kHuge ? kHuge : 64;
        const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
        data_ = std::aligned_alloc(alignment, rounded);
        if (!data_) throw std::bad_alloc();
#if defined(__linux__)
        if (bytes >= kHuge) madvise(data_, rounded, MADV_HUGEPAGE);
#endif
        std::memset(data_, 0, rounded);
    }
    Buffer(Buffer&& other) noexcept { *this = std::move(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~Buffer() { std::free(data_); }

    template <typename T>
    T* as() const {
        return static_cast<T*>(data_);
    }
    std::size_t bytes() const { return bytes_; }

private:
    void* data_ = nullptr;
    std::size_t bytes_ = 0;
};

}  // namespace audiogen_fast
