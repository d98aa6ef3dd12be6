// Large aligned memory.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace audiogen_fast {

// Zeroed memory, aligned to a cache line; in huge pages where it is big and the system has them,
// because a step streams through all of it.
class Buffer {
public:
    Buffer() = default;
    explicit Buffer(std::size_t bytes) : bytes_(bytes) {
        if (bytes == 0) return;
        data_ = is_mapped() ? map(bytes) : std::aligned_alloc(64, round_up(bytes, 64));
        if (!data_) throw std::bad_alloc();
        std::memset(data_, 0, bytes);
    }
    Buffer(Buffer&& other) noexcept { *this = std::move(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~Buffer() {
#if defined(__linux__)
        if (is_mapped()) {
            munmap(data_, bytes_);
            return;
        }
#endif
        std::free(data_);
    }

    template <typename T>
    T* as() const {
        return static_cast<T*>(data_);
    }
    std::size_t bytes() const { return bytes_; }

private:
    static constexpr std::size_t kHuge = std::size_t{1} << 21;

    static std::size_t round_up(std::size_t value, std::size_t step) {
        return (value + step - 1) / step * step;
    }

#if defined(__linux__)
    bool is_mapped() const { return bytes_ >= kHuge; }

    // Straight from the system, and only its beginning rounded: the allocator would round hundreds
    // of matrices up to whole huge pages and keep holes between them.
    static void* map(std::size_t bytes) {
        const std::size_t size = round_up(bytes, static_cast<std::size_t>(sysconf(_SC_PAGESIZE)));
        void* found = mmap(nullptr, size + kHuge, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (found == MAP_FAILED) return nullptr;
        auto* begin = static_cast<char*>(found);
        const auto address = reinterpret_cast<std::uintptr_t>(begin);
        char* data = begin + (round_up(address, kHuge) - address);
        if (data > begin) munmap(begin, static_cast<std::size_t>(data - begin));
        const std::size_t after = static_cast<std::size_t>(begin + kHuge - data);
        if (after > 0) munmap(data + size, after);
        madvise(data, size, MADV_HUGEPAGE);
        return data;
    }
#else
    bool is_mapped() const { return false; }
    static void* map(std::size_t) { return nullptr; }
#endif

    void* data_ = nullptr;
    std::size_t bytes_ = 0;
};

}  // namespace audiogen_fast
