import KubernetesObjects

/// What a source of cluster objects reports, in order.
public enum SourceEvent: Sendable {
  /// Objects that changed together. `receivedAt`: when the cause was read from the kernel, or the first read began.
  case changes([ObjectChange], receivedAt: ContinuousClock.Instant)
  /// All problems of one place, replacing what was reported of it before: a file (or the folder itself, under its path), or
  /// an object by its kind and key. Empty: it is healed, or gone.
  case problems([ObjectProblem], place: String)
  /// Everything that was there at the start has been reported. `isRemembered`: not by the cluster, but by what an earlier
  /// agent knew of it.
  case synced(isRemembered: Bool)
  /// How many objects of each kind Sluice does not read, over the whole folder; reported when it changes.
  case ignoredKinds([String: Int])
  /// Whether more will be heard; reported when it changes.
  case reach(SourceReach)
}

/// Whether a cluster tells of its objects.
public enum SourceReach: Sendable, Hashable {
  case following
  /// Why not. What is known stays.
  case away(String)
}
