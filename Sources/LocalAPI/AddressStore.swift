import Glibc
import NetworkTypes

/// The reserved addresses of one network on this node, as files that any number of processes may use at once, each of
/// which may be killed at any point.
///
///     <state>/networks/<network>/
///       addresses/10.0.1.5    one file per reserved address
///       owners/<hash>         one per attachment
///       released/<ms>_10.0.1.5  when an address was freed
///
/// An attachment's names are hard links to one file, its `AddressReservation`. Taking an address is one link(2), so no
/// lock is needed. Taking one back is allowed only to the holder of that file's flock, which is only ever tried, never
/// waited for, and ends with its process. The owner's name is made first and removed last: whatever a crash leaves is
/// found through it.
///
/// Nothing is synced: a reservation means nothing after a reboot, and within one boot a link shows whole content.
public struct AddressStore: Sendable {
  /// How long a freed address rests before it is used again, unless there is no other.
  public static let defaultFloorMilliseconds: Int64 = 30_000
  /// Addresses that are used in turn before the first is used again (or four times as many as are in use), where the
  /// pool has as many: it bounds the number of `released` files in a large range.
  static let smallestWindow = 256
  /// A temporary file older than this belongs to a process that was killed.
  static let leftoverSeconds: Int64 = 60

  public let directory: String
  private let floorMilliseconds: Int64
  private let now: @Sendable () -> Int64

  private var addressDirectory: String { directory + "/addresses" }
  private var ownerDirectory: String { directory + "/owners" }
  private var releasedDirectory: String { directory + "/released" }

  /// `now` gives milliseconds since 1970.
  public init(
    stateDirectory: String = LocalAPIDefaults.stateDirectory, network: String,
    floorMilliseconds: Int64 = AddressStore.defaultFloorMilliseconds,
    now: @escaping @Sendable () -> Int64 = AddressStore.wallClock
  ) {
    // A file name has 255 bytes at most; CNI sets a network's name no limit.
    let name = network.utf8.count <= 200 ? network : StableHash.hex128(network)
    directory = "\(stateDirectory)/networks/\(name)"
    self.floorMilliseconds = floorMilliseconds
    self.now = now
  }

  /// Those of all networks that there are.
  public static func all(
    stateDirectory: String = LocalAPIDefaults.stateDirectory
  ) throws(FileError) -> [AddressStore] {
    try LocalFile.names(in: "\(stateDirectory)/networks")
      .map { AddressStore(stateDirectory: stateDirectory, network: $0) }
      // Whatever else lies there.
      .filter { access($0.ownerDirectory, F_OK) == 0 }
  }

  public static func wallClock() -> Int64 {
    var time = timespec()
    clock_gettime(CLOCK_REALTIME, &time)
    return Int64(time.tv_sec) * 1000 + Int64(time.tv_nsec) / 1_000_000
  }

  // MARK: Reserving

  /// Reserves one address of each pool, in the pools' order: the requested one, or one never used, or the one freed
  /// longest ago.
  ///
  /// `reclaim` is asked, once a pool has no free address, about each reservation (nil: its content is unreadable)
  /// whether it is dead; before it says yes it removes what may still use the address.
  public func reserve(
    _ owner: AddressReservation, from pools: [AddressPool], requested: [IPAddress] = [],
    reclaim: (IPAddress, AddressReservation?) -> Bool = { _, _ in false }
  ) throws(AddressStoreError) -> [IPAddress] {
    let wishes = try Self.assign(requested, to: pools)
    let temporary = try translated { () throws(FileError) in
      for directory in [addressDirectory, ownerDirectory, releasedDirectory] {
        try LocalFile.createDirectories(directory)
      }
      try removeLeftovers()
      return try TemporaryReservation(in: directory, Array(owner.json.serialized().utf8))
    }
    let ownerPath = ownerPath(owner.containerID, owner.interfaceName)
    guard try temporary.link(to: ownerPath) else { throw .held }
    do throws(AddressStoreError) {
      var addresses: [IPAddress] = []
      let listing = try translated { () throws(FileError) in try self.listing() }
      for (pool, wish) in zip(pools, wishes) {
        if let wish {
          try take(wish, temporary, reclaim: reclaim)
          addresses.append(wish)
        } else {
          addresses.append(try takeAny(of: pool, temporary, listing, reclaim: reclaim))
        }
      }
      return addresses
    } catch {
      try? free(ownerPath)
      throw error
    }
  }

  /// The wish for each pool, nil for any address.
  private static func assign(
    _ requested: [IPAddress], to pools: [AddressPool]
  ) throws(AddressStoreError) -> [IPAddress?] {
    var wishes = [IPAddress?](repeating: nil, count: pools.count)
    for address in requested {
      guard let place = pools.firstIndex(where: { $0.contains(address) }) else { throw .outside(address) }
      guard wishes[place] == nil else { throw .requestedTwice(address) }
      wishes[place] = address
    }
    return wishes
  }

  private func take(
    _ address: IPAddress, _ temporary: borrowing TemporaryReservation, reclaim: (IPAddress, AddressReservation?) -> Bool
  ) throws(AddressStoreError) {
    let path = path(of: address)
    if try temporary.link(to: path) { return forgetRelease(of: address) }
    let owner = reservation(at: path)
    if reclaim(address, owner) {
      try translated { () throws(FileError) in try free(path) { $0 == owner } }
      if try temporary.link(to: path) { return forgetRelease(of: address) }
    }
    throw .taken(address, by: owner)
  }

  private func takeAny(
    of pool: AddressPool, _ temporary: borrowing TemporaryReservation, _ first: Listing,
    reclaim: (IPAddress, AddressReservation?) -> Bool
  ) throws(AddressStoreError) -> IPAddress {
    // Others take addresses at the same time: a look at the folder may be outdated. Each round sees at least one taken.
    for round in 0..<20 {
      let listing = round == 0 ? first : try translated { () throws(FileError) in try self.listing() }
      let state = Snapshot(listing, of: pool, now: now(), floorMilliseconds: floorMilliseconds)
      for address in state.restedCandidates(pool) where try temporary.link(to: path(of: address)) {
        forget(state.markers[address])
        return address
      }
      if round == 0 {
        for address in state.used {
          let path = path(of: address)
          let owner = reservation(at: path)
          // Another process may have been quicker, and have it by now.
          if reclaim(address, owner) { try? free(path) { $0 == owner } }
        }
        continue
      }
      for address in state.restingCandidates where try temporary.link(to: path(of: address)) {
        forget(state.markers[address])
        return address
      }
      if UInt128(state.used.count) >= pool.count { break }
    }
    throw .exhausted(pool: pool.description)
  }

  // MARK: Freeing

  /// Frees what an attachment holds. Nothing of it is left afterwards, also after earlier crashes; unknown attachments
  /// are no error.
  public func release(containerID: String, interfaceName: String) throws(FileError) {
    try free(ownerPath(containerID, interfaceName))
  }

  /// The same of what `owners` told, where it is still that.
  ///
  /// - Parameter known: nil: it could not be read.
  public func release(ownerName: String, known: AddressReservation?) throws(FileError) {
    try free("\(ownerDirectory)/\(ownerName)") { $0 == known }
  }

  /// Removes every name of the reservation that lies at `path`.
  private func free(
    _ path: String, where isMeant: ((AddressReservation?) -> Bool)? = nil
  ) throws(FileError) {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
    guard descriptor >= 0 else {
      if errno == ENOENT || errno == ENOTDIR { return }
      throw FileError(path: path, operation: "open", errno: errno)
    }
    defer { close(descriptor) }
    // Whoever has the lock is freeing the same.
    guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else { return }
    var status = stat()
    guard fstat(descriptor, &status) == 0 else { throw FileError(path: path, operation: "stat", errno: errno) }
    // What was read by its name was this file's, where the name is still this file's.
    if let isMeant, !(isMeant(reservation(at: path)) && isLink(path, to: status)) { return }
    // The open descriptor keeps the inode number from being used again, so what has it is ours to remove.
    for name in try LocalFile.names(in: addressDirectory) where isLink("\(addressDirectory)/\(name)", to: status) {
      if let address = IPAddress(name) { markReleased(address) }
      try LocalFile.remove("\(addressDirectory)/\(name)")
    }
    for name in try LocalFile.names(in: ownerDirectory) where isLink("\(ownerDirectory)/\(name)", to: status) {
      try LocalFile.remove("\(ownerDirectory)/\(name)")
    }
  }

  private func isLink(_ path: String, to file: stat) -> Bool {
    var status = stat()
    return lstat(path, &status) == 0 && status.st_ino == file.st_ino && status.st_dev == file.st_dev
  }

  /// A marker that cannot be written costs the address its rest, no more.
  private func markReleased(_ address: IPAddress) {
    try? LocalFile.create("\(releasedDirectory)/\(now())_\(address)", with: [], flags: O_TRUNC, sync: false)
  }

  private func forget(_ markers: [String]?) {
    for name in markers ?? [] { unlink("\(releasedDirectory)/\(name)") }
  }

  private func forgetRelease(of address: IPAddress) {
    let names = (try? LocalFile.names(in: releasedDirectory)) ?? []
    forget(names.filter { $0.hasSuffix("_\(address)") })
  }

  private func removeLeftovers() throws(FileError) {
    for name in try LocalFile.names(in: directory) where name.hasPrefix(TemporaryReservation.prefix) {
      var status = stat()
      let path = "\(directory)/\(name)"
      // Wall clock on both sides: the file's time and ours.
      if lstat(path, &status) == 0, Int64(status.st_mtim.tv_sec) < Self.wallClock() / 1000 - Self.leftoverSeconds {
        unlink(path)
      }
    }
  }

  // MARK: Reading

  /// What the folders held at one moment.
  private struct Listing {
    var reserved: [IPAddress] = []
    /// When an address was freed; one may have several, of which the latest counts.
    var releases: [(address: IPAddress, time: Int64, name: String)] = []
  }

  private func listing() throws(FileError) -> Listing {
    var listing = Listing()
    listing.reserved = try LocalFile.names(in: addressDirectory).compactMap { IPAddress($0) }
    for name in try LocalFile.names(in: releasedDirectory) {
      let parts = name.utf8.split(separator: UInt8(ascii: "_"), maxSplits: 1)
      guard parts.count == 2, let time = Int64(Substring(parts[0])), let address = IPAddress(Substring(parts[1])) else {
        continue
      }
      listing.releases.append((address, time, name))
    }
    return listing
  }

  /// One pool's part of a listing.
  private struct Snapshot {
    /// Reserved addresses of the pool.
    var used: Set<IPAddress> = []
    /// Freed ones, longest ago first.
    var rested: [IPAddress] = []
    /// Freed within the floor, longest ago first.
    var resting: [IPAddress] = []
    var markers: [IPAddress: [String]] = [:]

    init(_ listing: Listing, of pool: AddressPool, now: Int64, floorMilliseconds: Int64) {
      for address in listing.reserved where pool.contains(address) { used.insert(address) }
      var times: [IPAddress: Int64] = [:]
      for (address, time, name) in listing.releases where pool.contains(address) {
        markers[address, default: []].append(name)
        times[address] = max(times[address] ?? time, time)
      }
      let order = times.filter { !used.contains($0.key) }.sorted { ($0.value, $0.key) < ($1.value, $1.key) }
      for (address, time) in order {
        // A clock that was set back must not keep an address for ever.
        if time > now || now - time >= floorMilliseconds {
          rested.append(address)
        } else {
          resting.append(address)
        }
      }
    }

    /// Never used within the window, then freed and rested, then never used at all.
    func restedCandidates(_ pool: AddressPool) -> [IPAddress] {
      let window = max(AddressStore.smallestWindow, used.count * 4)
      var fresh: [IPAddress] = []
      var beyond: [IPAddress] = []
      for (index, address) in pool.addresses.enumerated() {
        // More candidates than processes that could be ahead of us are never needed.
        if fresh.count >= 64 || beyond.count >= 64 { break }
        if used.contains(address) || markers[address] != nil { continue }
        if index < window { fresh.append(address) } else { beyond.append(address) }
      }
      return fresh + rested + beyond
    }

    var restingCandidates: [IPAddress] { rested + resting }
  }

  /// The addresses an attachment holds, lowest first; none for an unknown one.
  public func addresses(containerID: String, interfaceName: String) throws(FileError) -> [IPAddress] {
    var owner = stat()
    guard lstat(ownerPath(containerID, interfaceName), &owner) == 0 else { return [] }
    return try LocalFile.names(in: addressDirectory)
      .filter { isLink("\(addressDirectory)/\($0)", to: owner) }.compactMap { IPAddress($0) }.sorted()
  }

  public func reservation(containerID: String, interfaceName: String) -> AddressReservation? {
    reservation(at: ownerPath(containerID, interfaceName))
  }

  /// Whether the attachment has a reservation, readable or not.
  public func holds(containerID: String, interfaceName: String) -> Bool {
    access(ownerPath(containerID, interfaceName), F_OK) == 0
  }

  /// All reserved addresses, lowest first, with their owners; nil where that cannot be read.
  public func reservations() throws(FileError) -> [(address: IPAddress, owner: AddressReservation?)] {
    try LocalFile.names(in: addressDirectory).compactMap { IPAddress($0) }.sorted()
      .map { ($0, reservation(at: path(of: $0))) }
  }

  /// All attachments that hold something, by their hashes, in no order; nil where that cannot be read.
  public func owners() throws(FileError) -> [(name: String, reservation: AddressReservation?)] {
    try LocalFile.names(in: ownerDirectory).map { ($0, reservation(at: "\(ownerDirectory)/\($0)")) }
  }

  private func reservation(at path: String) -> AddressReservation? {
    guard let bytes = try? LocalFile.read(path), let json = try? JSONValue(parsing: bytes) else { return nil }
    return try? AddressReservation(json: json)
  }

  private func path(of address: IPAddress) -> String { "\(addressDirectory)/\(address)" }

  private func ownerPath(_ containerID: String, _ interfaceName: String) -> String {
    "\(ownerDirectory)/\(AttachmentName(containerID, interfaceName).hash)"
  }
}

private func translated<Value: ~Copyable>(
  _ body: () throws(FileError) -> Value
) throws(AddressStoreError) -> Value {
  do throws(FileError) {
    return try body()
  } catch {
    throw .file(error)
  }
}
