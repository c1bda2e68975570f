import CLibBPF
import Glibc
import Netlink

/// One pass over a map, however large it is: some thousand elements are in memory at a time.
extension PinnedMap {
  /// How many bytes one element's value has where it is read: all processors' values, each of a multiple of 8 bytes.
  private func bytesOfValue() throws(SystemError) -> Int {
    guard kind.isPerProcessor else { return valueSize }
    return (valueSize + 7) / 8 * 8 * Int(try check("count processors for", name) { libbpf_num_possible_cpus() })
  }

  /// Every element's key and value; the bytes are lent for the call. What others write meanwhile may be there or not.
  ///
  /// A map with a value for each processor gives them one after the other. Stops when `body` returns false.
  /// - Throws: also where the kernel cannot list the map, as a ring.
  public func forEach(_ body: (UnsafeRawBufferPointer, UnsafeRawBufferPointer) -> Bool) throws(SystemError) {
    guard kind.hasElements else {
      throw SystemError(operation: "list", object: "map \(name)", errno: EINVAL, detail: "a \(kind) has no elements")
    }
    // A listing by batches does not begin anew where an element is deleted meanwhile.
    if kind.canFill, try forEachBatch(body) { return }
    try forEachKey(body)
  }

  /// How many elements there are. Costs what there is, and 16 bytes to look at for each that there could be.
  public func count() throws(SystemError) -> Int {
    guard kind.canFill else { return kind.hasElements ? maximum : 0 }
    var count = 0
    try forEach { _, _ in
      count += 1
      return true
    }
    return count
  }

  /// - Returns: false where the kernel has no batches for this kind; nothing has been handed out then.
  private func forEachBatch(
    _ body: (UnsafeRawBufferPointer, UnsafeRawBufferPointer) -> Bool
  ) throws(SystemError) -> Bool {
    let valueBytes = try bytesOfValue()
    // More where one bucket alone has more.
    var room = min(4096, max(maximum, 1))
    // A place in the listing: as long as a key, or as a number.
    var (place, next) = ([UInt8](repeating: 0, count: max(keySize, 8)), [UInt8](repeating: 0, count: max(keySize, 8)))
    var (hasBegun, hasEnded, seen) = (false, false, 0)
    while !hasEnded {
      let keys = UnsafeMutableRawBufferPointer.allocate(byteCount: room * keySize, alignment: 8)
      let values = UnsafeMutableRawBufferPointer.allocate(byteCount: room * valueBytes, alignment: 8)
      defer {
        keys.deallocate()
        values.deallocate()
      }
      while true {
        var count = UInt32(room)
        var options = bpf_map_batch_opts()
        options.sz = MemoryLayout<bpf_map_batch_opts>.size
        let result = place.withUnsafeMutableBytes { place in
          bpf_map_lookup_batch(
            descriptor.number, hasBegun ? place.baseAddress : nil, &next, keys.baseAddress, values.baseAddress, &count,
            &options)
        }
        if result == -EINTR || result == -EAGAIN { continue }
        if result == -ENOSPC, room < maximum {
          room = min(room * 4, maximum)
          break
        }
        // 524: ENOTSUPP.
        if !hasBegun, result == -524 || result == -EINVAL || result == -EOPNOTSUPP { return false }
        if result != -ENOENT { try check("list", "map \(name)") { result } }
        seen += Int(count)
        // A prefix that is deleted meanwhile makes the kernel begin anew: without a bound that could go on for ever.
        if seen > 2 * maximum { throw changesTooFast() }
        for index in 0..<Int(count) {
          let key = UnsafeRawBufferPointer(rebasing: keys[index * keySize..<(index + 1) * keySize])
          let value = UnsafeRawBufferPointer(rebasing: values[index * valueBytes..<(index + 1) * valueBytes])
          if !body(key, value) { return true }
        }
        if result == -ENOENT {
          hasEnded = true
          break
        }
        hasBegun = true
        swap(&place, &next)
      }
    }
    return true
  }

  private func forEachKey(
    _ body: (UnsafeRawBufferPointer, UnsafeRawBufferPointer) -> Bool
  ) throws(SystemError) {
    var (key, next) = ([UInt8](repeating: 0, count: keySize), [UInt8](repeating: 0, count: keySize))
    var value = [UInt8](repeating: 0, count: try bytesOfValue())
    var hasBegun = false
    // As above.
    for _ in 0...(2 * maximum) {
      let result = key.withUnsafeBytes { key in
        bpf_map_get_next_key(descriptor.number, hasBegun ? key.baseAddress : nil, &next)
      }
      if result == -ENOENT { return }
      try check("list", "map \(name)") { result }
      let found = bpf_map_lookup_elem(descriptor.number, &next, &value)
      if found != -ENOENT {
        try check("look up in", "map \(name)") { found }
        if !next.withUnsafeBytes({ key in value.withUnsafeBytes { body(key, $0) } }) { return }
      }
      hasBegun = true
      swap(&key, &next)
    }
    throw changesTooFast()
  }

  private func changesTooFast() -> SystemError {
    SystemError(operation: "list", object: "map \(name)", errno: EAGAIN, detail: "it changes too fast")
  }

  /// One element's value; nil where there is none, or the map has another layout.
  func value<Key: MapLayout, Value: MapLayout>(of key: Key, as type: Value.Type) throws(SystemError) -> Value? {
    guard hasLayout(Key.self, Value.self) else { return nil }
    var value = Value()
    let result = withUnsafePointer(to: key) { bpf_map_lookup_elem(descriptor.number, $0, &value) }
    if result == -ENOENT { return nil }
    try check("look up in", "map \(name)") { result }
    return value
  }

  func hasLayout<Key: MapLayout, Value: MapLayout>(_ key: Key.Type, _ value: Value.Type) -> Bool {
    keySize == MemoryLayout<Key>.stride && valueSize == MemoryLayout<Value>.stride
  }

  /// `forEach` by layout.
  ///
  /// - Throws: also where the map has another.
  func forEach<Key: MapLayout, Value: MapLayout>(
    _: Key.Type, _: Value.Type, _ body: (Key, Value) -> Void
  ) throws(SystemError) {
    guard hasLayout(Key.self, Value.self) else {
      throw SystemError(
        operation: "read", object: "map \(name)", errno: EINVAL, detail: "another version of Sluice made it")
    }
    try forEach { key, value in
      body(key.loadUnaligned(as: Key.self), value.loadUnaligned(as: Value.self))
      return true
    }
  }
}
