// Threads that share the rows of a weight.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <unistd.h>
#include "product.h"

namespace {

// Threads that sleep between calls. The caller starts at once and takes blocks of rows like everyone else, so a thread
// that wakes late costs nothing but its share.
class Pool {
 public:
  void run(const Call& call, const Plan& plan, const RowsView& rows, int64_t block, int n_threads) {
    std::unique_lock<std::mutex> alone(busy_, std::try_to_lock);
    if (!alone.owns_lock()) return work_on(call, plan, rows, 0, call.out);  // another Python thread has the pool
    Job job{&call, &plan, &rows, block, {0}};
    {
      std::lock_guard<std::mutex> guard(state_);
      while (n_started_ < n_threads - 1) start_one();
      job_ = &job;
      wanted_ = n_threads - 1;
      ++serial_;
    }
    if (n_threads == 2 && n_started_ == 1) wake_.notify_one();
    else wake_.notify_all();
    take_blocks(job);
    std::unique_lock<std::mutex> lock(state_);
    job_ = nullptr;  // who wakes from here on finds nothing to do
    done_.wait(lock, [&] { return n_inside_ == 0; });
  }

 private:
  struct Job {
    const Call* call;
    const Plan* plan;
    const RowsView* rows;
    int64_t block;
    std::atomic<int64_t> next;
  };

  static void take_blocks(Job& job) {
    const int64_t out = job.call->out;
    for (;;) {
      const int64_t begin = job.next.fetch_add(job.block, std::memory_order_relaxed);
      if (begin >= out) return;
      work_on(*job.call, *job.plan, *job.rows, begin, std::min(out, begin + job.block));
    }
  }

  void start_one() {
    ++n_started_;
    std::thread([this] { serve(); }).detach();
  }

  void serve() {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(state_);
    for (;;) {
      wake_.wait(lock, [&] { return serial_ != seen; });
      seen = serial_;
      if (job_ == nullptr || n_inside_ >= wanted_) continue;
      Job& job = *job_;
      ++n_inside_;
      lock.unlock();
      take_blocks(job);
      lock.lock();
      if (--n_inside_ == 0) done_.notify_one();
    }
  }

  std::mutex busy_, state_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  uint64_t serial_ = 0;
  int n_started_ = 0, n_inside_ = 0, wanted_ = 0;
};

// Never destroyed: its threads sleep until the process ends. A forked child has none of them and makes its own.
Pool& pool() {
  static std::mutex guard;
  static Pool* made = nullptr;
  static pid_t owner = 0;
  std::lock_guard<std::mutex> lock(guard);
  if (made == nullptr || owner != getpid()) {
    made = new Pool;
    owner = getpid();
  }
  return *made;
}

// The whole product, by as many threads as were asked for.
void multiply(const Call& call, const Plan& plan, const RowsView& rows) {
  if (call.n_threads <= 1) return work_on(call, plan, rows, 0, call.out);
  const int64_t unit = call.n_rows > kMaxRows ? kPanelRows : kBlock;
  const int64_t block = std::max<int64_t>(2 * unit, call.out / (call.n_threads * 8)) / unit * unit;
  pool().run(call, plan, rows, block, call.n_threads);
}

}  // namespace
